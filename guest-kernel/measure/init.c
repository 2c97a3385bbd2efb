/*
 * The init of a measured boot. Under QEMU's instruction count the time stamp
 * counter is the number of instructions since power-on: this program reads it
 * before anything else, writes it to the virtio console and resets the machine.
 * It uses no library, so that nothing runs before its first instruction.
 */

#define AT_CONSOLE "/measure"
#define HVC0 (229 << 8)
#define CHARACTER_DEVICE 020600

enum { SYS_WRITE = 1, SYS_OPEN = 2, SYS_MKNOD = 133, SYS_REBOOT = 169 };

static long call(long number, long a, long b, long c)
{
	long result;

	__asm__ volatile("syscall"
			 : "=a"(result)
			 : "a"(number), "D"(a), "S"(b), "d"(c), "r"(0L)
			 : "rcx", "r11", "memory");
	return result;
}

__asm__(".globl _start\n"
	"_start:\n"
	"	rdtsc\n"
	"	shl $32, %rdx\n"
	"	or %rdx, %rax\n"
	"	mov %rax, %rdi\n"
	"	and $-16, %rsp\n"
	"	call report\n");

void report(unsigned long count)
{
	char line[] = "instructions=                    \n";
	int at = sizeof(line) - 3;
	long console;

	do {
		line[at--] = '0' + count % 10;
		count /= 10;
	} while (count);

	call(SYS_MKNOD, (long)AT_CONSOLE, CHARACTER_DEVICE, HVC0);
	console = call(SYS_OPEN, (long)AT_CONSOLE, 1, 0);
	call(SYS_WRITE, console, (long)line, sizeof(line) - 1);
	call(SYS_REBOOT, 0xfee1dead, 0x28121969, 0x01234567);
	for (;;)
		;
}
