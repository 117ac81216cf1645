/* A plugin of qemu-user that counts the instructions of the emulated program: at every call of getppid the number so far
 * is appended to a file, eight bytes each, as little-endian machines write them.
 *
 *     cc -O2 -shared -fPIC bench/qemu_count.c -o count.so
 *     qemu-aarch64 -plugin ./count.so,to=counts PROGRAM
 *
 * Instructions are added when a block of them begins; a block that a signal cuts short counts as whole. Of a program
 * with several threads some are missed, since no lock is taken. The declarations are those of qemu-plugin.h, which
 * Debian does not package.
 */
#include <inttypes.h>
#include <stdio.h>
#include <string.h>

enum { ADD = 0, GETPPID = 173 }; /* QEMU_PLUGIN_INLINE_ADD_U64, and a system call's number on AArch64 */

typedef uint64_t plugin_id;
struct qemu_plugin_tb;
typedef void (*on_translation)(plugin_id, struct qemu_plugin_tb *);
typedef void (*on_call)(plugin_id, unsigned, int64_t, uint64_t, uint64_t, uint64_t, uint64_t, uint64_t, uint64_t,
                        uint64_t, uint64_t);
void qemu_plugin_register_vcpu_tb_trans_cb(plugin_id, on_translation);
void qemu_plugin_register_vcpu_syscall_cb(plugin_id, on_call);
void qemu_plugin_register_vcpu_tb_exec_inline(struct qemu_plugin_tb *, int operation, void *to, uint64_t by);
size_t qemu_plugin_tb_n_insns(const struct qemu_plugin_tb *);

int qemu_plugin_version = 1;
static uint64_t count;
static FILE *file;

static void translated(plugin_id id, struct qemu_plugin_tb *block)
{
    (void)id;
    qemu_plugin_register_vcpu_tb_exec_inline(block, ADD, &count, qemu_plugin_tb_n_insns(block));
}

static void called(plugin_id id, unsigned cpu, int64_t number, uint64_t a, uint64_t b, uint64_t c, uint64_t d,
                   uint64_t e, uint64_t f, uint64_t g, uint64_t h)
{
    (void)id, (void)cpu, (void)a, (void)b, (void)c, (void)d, (void)e, (void)f, (void)g, (void)h;
    if (number == GETPPID) {
        fwrite(&count, sizeof count, 1, file);
        fflush(file);
    }
}

int qemu_plugin_install(plugin_id id, const void *machine, int argc, char **argv)
{
    (void)machine;
    if (argc != 1 || strncmp(argv[0], "to=", 3) || !(file = fopen(argv[0] + 3, "wb")))
        return 1;
    qemu_plugin_register_vcpu_tb_trans_cb(id, translated);
    qemu_plugin_register_vcpu_syscall_cb(id, called);
    return 0;
}
