"""write_index respects what exists, and leaves an index that is whole or none."""

import errno
import os
import signal
import stat
import tempfile
import threading
import time
from pathlib import Path

import faiss
import naive
import numpy as np
import pytest

import faiss_dpq

NOBODY = 65534
needs_posix = pytest.mark.skipif(not hasattr(os, "fork"), reason="POSIX")


def filled(n=50):
    rng = np.random.default_rng(0)
    index = faiss_dpq.IndexDPQ.from_codebooks(naive.random_codebooks(rng, 3, 16, 6))
    index.add(naive.normal(rng, n, 6))
    return index


@pytest.fixture
def as_nobody(tmp_path):
    """A folder of another user's, who may not do what root may."""
    if os.geteuid() == 0:
        inside = [folder for folder in tmp_path.parents if Path(tempfile.gettempdir()) in folder.parents]
        for folder in (tmp_path, *inside):
            os.chmod(folder, 0o755)
        os.chown(tmp_path, NOBODY, NOBODY)
        os.seteuid(NOBODY)
        yield tmp_path
        os.seteuid(0)
    else:
        yield tmp_path
    os.chmod(tmp_path, 0o755)


@needs_posix
@pytest.mark.parametrize("exists", [True, False], ids=["existing", "dangling"])
def test_a_symbolic_link_is_followed(tmp_path, exists):
    (tmp_path / "folder").mkdir()
    target, link = tmp_path / "folder" / "target", tmp_path / "link"
    if exists:
        target.write_bytes(b"old")
    link.symlink_to("folder/target")
    faiss_dpq.write_index(filled(), link)
    assert link.is_symlink() and not target.is_symlink()
    assert faiss_dpq.read_index(target).ntotal == faiss_dpq.read_index(link).ntotal == 50


@needs_posix
def test_all_names_of_a_file_with_hard_links_see_the_index(tmp_path):
    (tmp_path / "a").write_bytes(b"old, and longer than the index that comes" * 1000)
    os.link(tmp_path / "a", tmp_path / "b")
    faiss_dpq.write_index(filled(), tmp_path / "a")
    assert os.path.samefile(tmp_path / "a", tmp_path / "b")
    assert faiss_dpq.read_index(tmp_path / "b").ntotal == 50


@needs_posix
def test_a_pipe_takes_the_index_and_its_settings(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    index = filled()
    index.prefix_weight = 0.5
    writer = threading.Thread(target=faiss_dpq.write_index, args=(index, tmp_path / "pipe"))
    writer.start()
    read = faiss_dpq.read_index(tmp_path / "pipe")
    writer.join()
    assert (read.ntotal, read.prefix_weight) == (50, 0.5)
    assert stat.S_ISFIFO(os.stat(tmp_path / "pipe").st_mode) and os.listdir(tmp_path) == ["pipe"]


@needs_posix
def test_devices_are_written_straight():
    before = os.stat("/dev/null")
    faiss_dpq.write_index(filled(), "/dev/null")
    assert os.stat("/dev/null").st_rdev == before.st_rdev
    if os.path.exists("/dev/full"):
        with pytest.raises(OSError, match="/dev/full") as caught:
            faiss_dpq.write_index(filled(), "/dev/full")
        assert caught.value.errno == errno.ENOSPC


@needs_posix
def test_permissions_owner_and_group_are_kept(tmp_path):
    path = tmp_path / "index"
    path.write_bytes(b"old")
    os.chmod(path, 0o640)
    if os.geteuid() == 0:
        os.chown(path, 12345, 23456)
    before = os.stat(path)
    faiss_dpq.write_index(filled(), path)
    after = os.stat(path)
    assert (after.st_mode, after.st_uid, after.st_gid) == (before.st_mode, before.st_uid, before.st_gid)
    assert after.st_ino != before.st_ino, "not written aside"


@needs_posix
def test_a_new_file_follows_the_umask(tmp_path):
    old = os.umask(0o027)
    try:
        faiss_dpq.write_index(filled(), tmp_path / "index")
    finally:
        os.umask(old)
    assert stat.S_IMODE(os.stat(tmp_path / "index").st_mode) == 0o640


@needs_posix
def test_a_file_in_a_folder_that_cannot_be_written_is_written_in_place(as_nobody):
    path = as_nobody / "index"
    path.write_bytes(b"old")
    os.chmod(as_nobody, 0o555)
    faiss_dpq.write_index(filled(), path)
    assert faiss_dpq.read_index(path).ntotal == 50
    before = path.read_bytes()
    with pytest.raises(RuntimeError, match="don't know how to serialize"):
        faiss_dpq.write_index(faiss_dpq.IndexIDMap2(faiss_dpq.IndexShards(6)), path)
    assert path.read_bytes() == before
    with pytest.raises(PermissionError, match="new"):
        faiss_dpq.write_index(filled(), as_nobody / "new")


@needs_posix
def test_a_file_that_may_not_be_written_stays(as_nobody):
    path = as_nobody / "index"
    path.write_bytes(b"old")
    os.chmod(path, 0o444)
    with pytest.raises(PermissionError, match="index"):
        faiss_dpq.write_index(filled(), path)
    assert path.read_bytes() == b"old" and os.listdir(as_nobody) == ["index"]


@pytest.mark.parametrize("code", [errno.EBUSY, errno.EPERM, errno.EXDEV])
def test_a_file_that_cannot_be_renamed_over_is_written_in_place(tmp_path, monkeypatch, code):
    (tmp_path / "index").write_bytes(b"old" * 100_000)

    def refuse(*paths):
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "replace", refuse)
    faiss_dpq.write_index(filled(), tmp_path / "index")
    assert faiss_dpq.read_index(tmp_path / "index").ntotal == 50
    assert os.listdir(tmp_path) == ["index"]


@pytest.mark.parametrize("length", [1, 250, 255])
def test_names_may_be_long(tmp_path, length):
    for _ in range(2):
        faiss_dpq.write_index(filled(), tmp_path / ("n" * length))
    assert faiss_dpq.read_index(tmp_path / ("n" * length)).ntotal == 50


def test_a_missing_folder_is_named_as_it_was_given(tmp_path):
    path = str(tmp_path / "missing" / "index")
    with pytest.raises(FileNotFoundError) as caught:
        faiss_dpq.write_index(filled(), path)
    assert caught.value.filename == path
    with pytest.raises(IsADirectoryError, match=str(tmp_path)):
        faiss_dpq.write_index(filled(), tmp_path)


@needs_posix
def test_file_and_folder_are_synchronized(tmp_path, monkeypatch):
    synchronized = []
    fsync = os.fsync
    monkeypatch.setattr(os, "fsync", lambda handle: [synchronized.append(os.fstat(handle).st_mode), fsync(handle)])
    faiss_dpq.write_index(filled(), tmp_path / "index")
    assert [stat.S_IFMT(mode) for mode in synchronized] == [stat.S_IFREG, stat.S_IFDIR]


def test_an_interrupted_write_leaves_the_old_index(tmp_path, monkeypatch):
    faiss_dpq.write_index(filled(7), tmp_path / "index")

    def interrupt(*arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr("faiss_dpq.index.trailer.make", interrupt)
    with pytest.raises(KeyboardInterrupt):
        faiss_dpq.write_index(filled(), tmp_path / "index")
    assert faiss_dpq.read_index(tmp_path / "index").ntotal == 7
    assert os.listdir(tmp_path) == ["index"]


@needs_posix
def test_a_killed_writer_leaves_a_whole_index_and_what_the_next_one_removes(tmp_path):
    path, indexes = tmp_path / "index", [filled(10), filled(200_000)]
    faiss_dpq.write_index(indexes[0], path)
    rng = np.random.default_rng(0)
    leftovers = 0
    for _ in range(25):
        child = os.fork()
        if child == 0:
            while True:
                for index in indexes:
                    faiss_dpq.write_index(index, path)
        time.sleep(rng.uniform(0.005, 0.03))
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        assert faiss_dpq.read_index(path).ntotal in (10, 200_000)
        leftovers += len(os.listdir(tmp_path)) - 1
        assert len(os.listdir(tmp_path)) <= 2
    faiss_dpq.write_index(indexes[0], path)
    assert os.listdir(tmp_path) == ["index"]
    assert leftovers, "no writer was killed at work"


@needs_posix
def test_what_another_writer_is_at_work_on_is_no_leftover(tmp_path):
    at_work = threading.Event(), threading.Event()

    def slow(file):
        file.write(b"slow")
        at_work[0].set()
        at_work[1].wait()

    writer = threading.Thread(target=faiss_dpq.index.writing.write, args=(str(tmp_path / "slow"), slow))
    writer.start()
    at_work[0].wait()
    faiss_dpq.write_index(filled(), tmp_path / "index")
    at_work[1].set()
    writer.join()
    assert (tmp_path / "slow").read_bytes() == b"slow"
    assert sorted(os.listdir(tmp_path)) == ["index", "slow"]


def test_a_writer_of_faiss_gets_faiss_bytes_alone(tmp_path):
    writer = faiss.VectorIOWriter()
    for _ in range(2):
        faiss_dpq.write_index(filled(), writer)
    written = faiss.vector_to_array(writer.data).tobytes()
    assert written == 2 * faiss.serialize_index(filled()).tobytes()


@pytest.mark.parametrize("as_path", [os.fsdecode, os.fsencode, lambda name: Path(os.fsdecode(name))])
def test_names_that_are_not_utf8(tmp_path, as_path):
    index = filled()
    path = as_path(os.fsencode(tmp_path) + b"/\xff.faiss")
    faiss_dpq.write_index(index, path)
    read = faiss_dpq.read_index(path)
    np.testing.assert_array_equal(faiss_dpq.serialize_index(read), faiss_dpq.serialize_index(index))
    with pytest.raises(RuntimeError, match="FAISS maps no file of this name"):
        faiss_dpq.read_index(path, faiss.IO_FLAG_MMAP_IFC)


def test_a_zero_in_a_name_does_not_end_it(tmp_path):
    path = str(tmp_path / "a")
    faiss_dpq.write_index(filled(), path)
    for call in (lambda name: faiss_dpq.write_index(filled(), name), faiss_dpq.read_index):
        with pytest.raises(ValueError, match="null byte"):
            call(path + "\0b")
    with pytest.raises(RuntimeError, match="FAISS maps no file of this name"):
        faiss_dpq.read_index(path + "\0b", faiss.IO_FLAG_MMAP)


@pytest.mark.parametrize("name, error", [("", FileNotFoundError), ("new/", IsADirectoryError)])
def test_paths_that_name_no_file(tmp_path, monkeypatch, name, error):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(error):
        faiss_dpq.write_index(filled(), name)
    assert not list(tmp_path.iterdir())
