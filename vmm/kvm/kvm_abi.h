// <linux/kvm.h> with the layouts that the kernel has. Include this, never the header itself.
//
// Its flexible arrays are declared behind an empty struct, which in C takes no room, but in C++ one byte: kvm_cpuid2,
// kvm_msrs and their like would get other offsets and, by their sizes, other ioctl numbers.
#pragma once

#include <linux/stddef.h>
#include <linux/types.h>

#undef __DECLARE_FLEX_ARRAY
#define __DECLARE_FLEX_ARRAY(TYPE, NAME) TYPE NAME[]

#include <linux/kvm.h>

static_assert(sizeof(kvm_cpuid2) == 8 && sizeof(kvm_msrs) == 8 && sizeof(kvm_msr_list) == 4);
