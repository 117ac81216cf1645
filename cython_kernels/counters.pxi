# Counters: what the kernels have done in this process. Tests read them to see that a fast path was taken.

cdef struct record:
    uint64_t bounded, rescored, floated, ordered  # (vector, query) pairs: see dpq_counters
    uint64_t batch_scans, single_scans  # calls: of many queries of all codes, and of one query after the other
    uint64_t lists_alone, lists_together  # calls: whose queries scanned all their lists alone; some together
    uint64_t refined  # candidates of coarse-to-fine searches that were scored by all levels
    uint64_t few_probes, direct, direct_lists  # calls of ListScan.search_few, OneQueryCodeScan, OneQueryListScan
    uint64_t listed  # vectors that a bitmap let through, few of all, and that were listed for one query
    uint64_t masked_lists  # lists that masks were made of by searches of few queries
    uint64_t most_threads  # of threads.c, the caller among them, that took part in the scan of one query
    uint64_t added_directly  # calls of DirectAddition
    uint64_t grown  # vectors that were added to what is derived from a list, in place of deriving all of it anew
    uint64_t unlisted  # vectors that were removed from lists by their ids, and what is derived from them followed
    uint64_t guessed, repeated  # vectors, at each level, for which the encoder's guessed limit was enough, or too low

cdef record counted
memset(&counted, 0, sizeof(counted))


def counters():
    """What the kernels have done in this process since `reset_counters`: a dict of the fields of `record`."""
    return counted


def reset_counters():
    """Begin to count anew."""
    memset(&counted, 0, sizeof(counted))


cdef void count_scan(const dpq_counters *scanned, uint64_t *calls) noexcept:
    """Add one call of a scan to the record. As all that writes there, with the GIL held."""
    counted.bounded += scanned.bounded
    counted.rescored += scanned.rescored
    counted.floated += scanned.floated
    counted.ordered += scanned.ordered
    counted.most_threads = max(counted.most_threads, scanned.threads)
    calls[0] += 1


cdef void count_lists(const dpq_counters *scanned) noexcept:
    count_scan(scanned, &counted.lists_together if scanned.together else &counted.lists_alone)


cdef void count_guesses(const dpq_guesses *guesses) noexcept:
    counted.guessed += guesses.enough
    counted.repeated += guesses.too_low


cdef struct ivf_stats:  # of faiss.cvar.indexIVF_stats: its first fields
    size_t nq, nlist, ndis

cdef ivf_stats *searches = NULL


def count_searches_at(size_t address):
    """Say where FAISS counts its searches of inverted lists; those of few queries are counted there, too."""
    global searches
    searches = <ivf_stats *><uintptr_t>address


cdef void count_searches(size_t nq, size_t nprobe, const int64_t *counts) noexcept:
    """Add queries that scanned so many vectors of each list, [nq][nprobe]."""
    cdef size_t i
    if searches == NULL:
        return
    searches.nq += nq
    for i in range(nq * nprobe):
        searches.nlist += counts[i] > 0
        searches.ndis += counts[i]
