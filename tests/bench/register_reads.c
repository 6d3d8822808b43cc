/* Runs in a guest: time a register's reads through a PCI function's file in sysfs. `register_reads FILE COUNT`
 *
 * Prints nanoseconds for each. Without a C library, so that it is small enough to be typed into the guest's shell.
 */

#include <stdint.h>

enum { OFFSET = 4 }; /* HCSPARAMS1 of an xHCI controller */
enum { SYS_WRITE = 1, SYS_OPEN = 2, SYS_MMAP = 9, SYS_EXIT = 60, SYS_CLOCK_GETTIME = 228 };

static long call(long number, long first, long second, long third, long fourth, long fifth, long sixth)
{
    register long r10 __asm__("r10") = fourth;
    register long r8 __asm__("r8") = fifth;
    register long r9 __asm__("r9") = sixth;
    __asm__ volatile("syscall"
                     : "+a"(number)
                     : "D"(first), "S"(second), "d"(third), "r"(r10), "r"(r8), "r"(r9)
                     : "rcx", "r11", "memory");
    return number;
}

static long now(void)
{
    long time[2];
    call(SYS_CLOCK_GETTIME, 1, (long)time, 0, 0, 0, 0);
    return time[0] * 1000000000 + time[1];
}

__attribute__((used)) static void run(long *stack)
{
    char **words = (char **)(stack + 1), text[24], *at = text + sizeof text;
    long count = 0, fd, nanoseconds;

    if (stack[0] != 3)
        call(SYS_EXIT, 2, 0, 0, 0, 0, 0);
    for (char *digit = words[2]; *digit; digit++)
        count = count * 10 + *digit - '0';
    fd = call(SYS_OPEN, (long)words[1], 2, 0, 0, 0, 0);
    volatile uint32_t *registers = (void *)call(SYS_MMAP, 0, 4096, 1, 1, fd, 0);
    if (fd < 0 || (unsigned long)registers > -4096UL || count < 1)
        call(SYS_EXIT, 1, 0, 0, 0, 0, 0);
    nanoseconds = now();
    for (long each = 0; each < count; each++)
        (void)registers[OFFSET / 4];
    nanoseconds = (now() - nanoseconds) / count;
    *--at = '\n';
    do
        *--at = '0' + nanoseconds % 10;
    while (nanoseconds /= 10);
    call(SYS_WRITE, 1, (long)at, text + sizeof text - at, 0, 0, 0);
    call(SYS_EXIT, 0, 0, 0, 0, 0, 0);
}

__asm__(".globl _start\n_start:\n\tmov %rsp, %rdi\n\tand $-16, %rsp\n\tcall run\n");
