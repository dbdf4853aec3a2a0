/* Start of a deterministic guest. Entered at CPL0 in 64-bit mode with identity page tables and RSI at the zero page
   (vmm/boot/long_mode.h); goes to CPL3 for good after a few hundred instructions, for some KVMs emulate CPL0. What
   remains at CPL0 is the way into and out of events and exceptions.

   Tables that the processor would mark while using them (accessed, dirty) are marked from the start: when it does so
   is no matter of the program's, and would differ between two runs of it.

   The code here is not counted: it has no loops but the one that fills the IDT, once. */

#define EPOCH_END_AT   0x1000   /* guest_abi::kEpochDeviceVirtual + kEpochEnd */
#define WAIT_AT        0x1008
#define POWER_OFF_AT   0x1030
#define EPOCH_DEVICE   0xd0100000

#define KERNEL_CODE    0x08
#define USER_DATA      0x1b
#define USER_CODE      0x23
#define TASK           0x28

#define EVENT_VECTOR   0x20
#define VECTORS        0x21
#define STUB_BYTES     16

#define RUNTIME_EXIT_DOUBLE_FAULT 0x2ff

/* The stack: below the image, a guard under it. */
#define STACK_TOP      0x200000

  .section .text.start, "ax", @progbits
  .global _start
  .code64
_start:
  cli
  movq %rsi, %rbx
  leaq top_table, %rax
  movq %rax, %cr3

  movl $0x00000624, %eax        /* OSXMMEXCPT, OSFXSR, PAE, TSD */
  movq %rax, %cr4

  /* The descriptor of the TSS: its address, in three parts. */
  leaq task_segment, %rax
  movw %ax, gdt_task+2
  shrq $16, %rax
  movb %al, gdt_task+4
  movb %ah, gdt_task+7
  lgdt gdt_pointer
  movw $TASK, %ax
  ltr %ax

  /* An interrupt gate for each stub. Their addresses fit in 32 bits. */
  leaq stubs, %rax
  leaq idt, %rdi
  movl $VECTORS, %ecx
1:
  movw %ax, (%rdi)
  movw $KERNEL_CODE, 2(%rdi)
  movw $0x8e00, 4(%rdi)         /* present, DPL 0, interrupt gate */
  movl %eax, %edx
  shrl $16, %edx
  movw %dx, 6(%rdi)
  addq $STUB_BYTES, %rax
  addq $16, %rdi
  decl %ecx
  jnz 1b
  lidt idt_pointer

  pushq $USER_DATA
  pushq $STACK_TOP
  pushq $0x202                  /* interrupts on, IOPL 0 */
  pushq $USER_CODE
  pushq $user_start
  iretq

/* CPL3. The first load of the count ends the boot's epoch. */
user_start:
  movl $USER_DATA, %eax
  movl %eax, %ds
  movl %eax, %es
  xorl %eax, %eax
  movl %eax, %fs
  movl %eax, %gs
  xorl %ebp, %ebp
  movq %rbx, %rdi
  xorl %r15d, %r15d
  cmpq %r15, %r15
  movq EPOCH_END_AT, %r15
  call pollux_start
  ud2

/* What a site calls when the count is used up: no register changes but r15. Wherever an epoch ends, the instruction
   before has defined every flag: processors differ in those that some instructions leave undefined. */
  .global pollux_epoch_end
pollux_epoch_end:
  movq EPOCH_END_AT, %r15
  ret

  .global pollux_wait
pollux_wait:
  cmpq %r15, %r15
  movq WAIT_AT, %r15
  ret

/* --- CPL0 from here on --- */

/* One stub a vector, STUB_BYTES each. Exceptions without an error code get a zero. */
  .balign 16
stubs:
  .set vector, 0
  .rept VECTORS - 1
  .balign 16
  .if vector != 8 && (vector < 10 || vector > 14) && vector != 17 && vector != 21 && vector != 29 && vector != 30
  pushq $0
  .endif
  pushq $vector
  jmp exception
  .set vector, vector + 1
  .endr
  .balign 16
  /* The event vector: that it was delivered is all there is to it. */
  iretq

/* On the stack: vector, error code, rip, cs, rflags, rsp, ss. Goes on in pollux_exception() at CPL3, on a stack of its
   own. An exception in there ends the machine. */
exception:
  pushq %rax
  incq exception_depth
  cmpq $1, exception_depth
  jne double_fault
  movq 8(%rsp), %rax
  movq %rax, pollux_exception_record
  movq 16(%rsp), %rax
  movq %rax, pollux_exception_record+8
  movq 24(%rsp), %rax
  movq %rax, pollux_exception_record+16
  movq 48(%rsp), %rax
  movq %rax, pollux_exception_record+24
  movq %cr2, %rax
  movq %rax, pollux_exception_record+32
  movq $pollux_exception, 24(%rsp)
  movq $USER_CODE, 32(%rsp)
  movq $0x2, 40(%rsp)           /* no more events */
  movq $exception_stack_top - 8, 48(%rsp)
  movq $USER_DATA, 56(%rsp)
  popq %rax
  addq $16, %rsp
  iretq

double_fault:
  movl $RUNTIME_EXIT_DOUBLE_FAULT, POWER_OFF_AT
1:
  hlt
  jmp 1b

  .section .data
  .balign 16
gdt:
  .quad 0
  .quad 0x00af9b000000ffff      /* 0x08 kernel code, accessed */
  .quad 0x00cf93000000ffff      /* 0x10 kernel data, accessed */
  .quad 0x00cff3000000ffff      /* 0x18 user data, accessed */
  .quad 0x00affb000000ffff      /* 0x20 user code, accessed */
gdt_task:
  .quad 0x0000890000000067      /* 0x28 TSS of 104 bytes */
  .quad 0
gdt_pointer:
  .word gdt_pointer - gdt - 1
  .quad gdt
idt_pointer:
  .word VECTORS * 16 - 1
  .quad idt

  .balign 16
task_segment:
  .long 0
  .quad kernel_stack_top        /* RSP0 */
  .skip 104 - 4 - 8 - 2
  .word 104                     /* no I/O permission map */

/* The first 4 GiB map to themselves with 2 MiB pages, but for the first 2 MiB: page 0 is not there (null pointers),
   page 1 is the epoch device, and there is a hole of 64 KiB under the stack, which has the rest: 0x110000 to 0x200000. */
  .section .tables, "aw", @progbits
  .balign 4096
top_table:
  .quad pointers + 0x27         /* accessed, user, writable, present */
  .skip 4088
pointers:
  .quad directories + 0x27, directories + 0x1027, directories + 0x2027, directories + 0x3027
  .skip 4096 - 32
directories:
  .quad low_pages + 0x27
  .set page, 1
  .rept 2047
  .quad (page << 21) + 0xe7     /* 2 MiB, dirty, accessed, user, writable, present */
  .set page, page + 1
  .endr
low_pages:
  .quad 0
  .quad EPOCH_DEVICE + 0x77     /* and not cached */
  .set page, 2
  .rept 0x100 - 2
  .quad (page << 12) + 0x67
  .set page, page + 1
  .endr
  .skip 16 * 8
  .set page, 0x110
  .rept 0x200 - 0x110
  .quad (page << 12) + 0x67
  .set page, page + 1
  .endr

  .section .bss
  .balign 16
idt:
  .skip VECTORS * 16
  .balign 16
  .skip 2048
kernel_stack_top:
  .skip 8192
  .balign 16
exception_stack_top:
exception_depth:
  .skip 8

  .section .note.GNU-stack,"",@progbits
