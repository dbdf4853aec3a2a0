/* Entered in 64-bit mode at CPL0 with identity page tables (the 64-bit boot protocol). Maps the first 4 GiB for
   CPL3 with 2 MiB pages and goes there: on the development machines CPL0 is emulated at about 1 us/instruction,
   so the page directory is filled with one `rep`-free loop of few instructions, and only 2048 rounds. */
  .section .text
  .global _start
  .code64
_start:
  cli
  leaq page_directories(%rip), %rdi
  movl $0x87, %eax              /* present, writable, user, 2 MiB */
  movl $2048, %ecx
1:
  movq %rax, (%rdi)
  addq $0x200000, %rax
  addq $8, %rdi
  decl %ecx
  jnz 1b

  leaq page_directories(%rip), %rax
  orq $7, %rax
  movq %rax, pdpt+0(%rip)
  addq $0x1000, %rax
  movq %rax, pdpt+8(%rip)
  addq $0x1000, %rax
  movq %rax, pdpt+16(%rip)
  addq $0x1000, %rax
  movq %rax, pdpt+24(%rip)
  leaq pdpt(%rip), %rax
  orq $7, %rax
  movq %rax, pml4(%rip)
  leaq pml4(%rip), %rax
  movq %rax, %cr3

  lgdt gdt_pointer(%rip)
  pushq $0x1b                   /* SS: user data */
  leaq stack_top(%rip), %rax
  pushq %rax
  pushq $0x2                    /* RFLAGS: interrupts off */
  pushq $0x23                   /* CS: user code */
  leaq guest_main(%rip), %rax
  pushq %rax
  iretq

  .section .rodata
  .balign 8
gdt:
  .quad 0
  .quad 0x00af9b000000ffff      /* 0x08 kernel code */
  .quad 0x00cff3000000ffff      /* 0x10 unused */
  .quad 0x00cff3000000ffff      /* 0x18 user data */
  .quad 0x00affb000000ffff      /* 0x20 user code */
gdt_pointer:
  .word gdt_pointer - gdt - 1
  .quad gdt

  .section .bss
  .balign 4096
pml4: .skip 4096
pdpt: .skip 4096
page_directories: .skip 4 * 4096
  .skip 16384
stack_top:

  .section .note.GNU-stack,"",@progbits
