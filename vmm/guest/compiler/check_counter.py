#!/usr/bin/env python3
"""Proves from a guest's machine code that the counter plugin left no way around the counter.

usage: check_counter.py GUEST [--objdump OBJDUMP]

What must hold, whatever the compiler did after the plugin ran:
  - no cycle of instructions within functions (jumps between them included) is free of a counter site;
  - no cycle of calls is: taking an edge from a function to those it may call before it has passed a site gives no cycle,
    and no call through a pointer is among them;
  - nothing but sites and the runtime's loads of the count touches register r15, unless to take more from it;
  - uncounted string instructions are only in the functions that bound them.
"""
import argparse
import re
import struct
import subprocess
import sys

# Assembly of the runtime (boot.S) that is not counted: it runs once.
BOUNDED = {"_start", "stubs", "exception", "double_fault"}
COUNT_LOADS = {"pollux_epoch_end", "pollux_wait", "user_start"}
STRING_FUNCTIONS = {"memcpy", "memset", "memmove"}
ENDS = {"ret", "retq", "ud2", "iretq", "iret"}

INSTRUCTION = re.compile(r"^\s+([0-9a-f]+):\t(\S.*)$")
LABEL = re.compile(r"^([0-9a-f]+) <(.+)>:$")
TARGET = re.compile(r"^([0-9a-f]+)(?: <.*>)?$")
PREFIXES = {"notrack", "bnd", "cs", "ds", "es", "data16", "lock", "addr32"}


def loaded_image(path):
    """The bytes of an ELF64 file that reach memory: its debug information, full of addresses, does not."""
    with open(path, "rb") as file:
        elf = file.read()
    (table,) = struct.unpack_from("<Q", elf, 32)
    size, count = struct.unpack_from("<HH", elf, 54)
    image = b""
    for at in range(table, table + size * count, size):
        kind, _, offset, _, _, length = struct.unpack_from("<IIQQQQ", elf, at)
        if kind == 1:  # PT_LOAD, page-aligned
            image += elf[offset:offset + length // 8 * 8]
    return image


class Code:
    def __init__(self, listing, image):
        self.text = {}  # address -> (mnemonic, operands)
        self.order = []
        self.labels = {}  # address -> name
        self.owner = {}  # address -> name
        owner = "?"
        for line in listing.splitlines():
            if label := LABEL.match(line):
                owner = label[2]
                self.labels[int(label[1], 16)] = owner
            elif found := INSTRUCTION.match(line):
                address = int(found[1], 16)
                words = found[2].split("#")[0].split()
                while len(words) > 1 and words[0] in PREFIXES:
                    words.pop(0)
                self.text[address] = (words[0], " ".join(words[1:]))
                self.owner[address] = owner
                self.order.append(address)
        self.following = dict(zip(self.order, self.order[1:]))
        # A site is its subtraction; the jump after it belongs to it.
        self.sites = {
            a for a in self.order
            if self.text[a] == ("sub", "$0x1,%r15")
            and self.text.get(self.following.get(a), ("", ""))[0] == "jl"
        }
        self.computed = self.find_computed_targets(image)
        self.returning = self.find_returning()

    def find_computed_targets(self, image):
        """Where jumps through pointers may lead within a function: its instructions, other than its first, whose address
        is a word of data (jump tables, addresses of labels) or an immediate operand."""
        words = {word for (word,) in struct.iter_unpack("<Q", image)}
        for _, operands in self.text.values():
            words.update(int(number, 16) for number in re.findall(r"\$0x([0-9a-f]+)", operands))
        targets = {}
        for address in words & self.text.keys() - self.labels.keys():
            targets.setdefault(self.owner[address], []).append(address)
        return targets

    def target(self, address):
        """Of a direct jump or call, else None."""
        found = TARGET.match(self.text[address][1])
        return int(found[1], 16) if found else None

    def successors(self, address, returning=None):
        """Within functions: a call goes on after it if it can return."""
        mnemonic = self.text[address][0]
        target = self.target(address)
        following = [self.following[address]] if address in self.following else []
        if mnemonic in ENDS:
            return []
        if mnemonic.startswith("jmp"):
            return self.computed.get(self.owner[address], []) if target is None else [target]
        if mnemonic.startswith("j"):
            return following + [target]
        if mnemonic.startswith("call") and target is not None:
            known = self.returning if returning is None else returning
            return following if target in known else []
        return following

    def reach(self, start, successors):
        seen, work = {start}, [start]
        while work:
            for next_one in successors(work.pop()):
                if next_one not in seen and next_one in self.text:
                    seen.add(next_one)
                    work.append(next_one)
        return seen

    def find_returning(self):
        """Functions from whose entry a return, or a jump through a pointer, can be reached."""
        entries = {self.target(a) for a in self.order if self.text[a][0].startswith("call")} - {None}
        returning = set()
        while True:
            found = set()
            for entry in entries - returning:
                for a in self.reach(entry, lambda x: self.successors(x, returning)):
                    mnemonic = self.text[a][0]
                    if mnemonic.startswith("ret") or (mnemonic.startswith("jmp") and self.target(a) is None):
                        found.add(entry)
                        break
            if not found:
                return returning
            returning |= found


def find_cycle(nodes, successors):
    """Some cycle as a list, or None: depth first, without recursion."""
    state = {}
    for root in nodes:
        if root in state:
            continue
        path, work = [], [(root, None)]
        while work:
            node, edges = work.pop()
            if edges is None:
                if state.get(node) == 2:
                    continue
                state[node] = 1
                path.append(node)
                edges = iter(successors(node))
            for next_one in edges:
                if state.get(next_one) == 1:
                    return path[path.index(next_one):]
                if next_one not in state:
                    work.append((node, edges))
                    work.append((next_one, None))
                    break
            else:
                state[node] = 2
                path.pop()
    return None


def check(code):
    errors = []
    counted = [a for a in code.order if code.owner[a] not in BOUNDED]
    kept = set(counted) - code.sites

    cycle = find_cycle(counted, lambda a: [s for s in code.successors(a) if s in kept] if a in kept else [])
    if cycle:
        errors.append(f"cycle without a site in {code.owner[cycle[0]]}: " + ", ".join(f"{a:#x}" for a in cycle))

    calls = {}
    entries = {a for a in code.labels if code.labels[a] not in BOUNDED and a in code.text}
    for entry in entries:
        calls[entry] = set()
        if entry in code.sites:
            continue
        for a in code.reach(entry, lambda x: [s for s in code.successors(x) if s in kept]):
            mnemonic = code.text[a][0]
            if not mnemonic.startswith(("call", "jmp")):
                continue
            target = code.target(a)
            if target is None:
                if code.computed.get(code.owner[a]) and mnemonic.startswith("jmp"):
                    continue  # within the function
                errors.append(f"call through a pointer without a site before it in {code.owner[a]} at {a:#x}")
            elif mnemonic.startswith("call"):
                calls[entry].add(target)
    cycle = find_cycle(entries, lambda a: calls.get(a, ()))
    if cycle:
        errors.append("recursion without a site: " + ", ".join(code.labels.get(a, hex(a)) for a in cycle))

    for a in code.order:
        mnemonic, operands = code.text[a]
        owner = code.owner[a]
        takes = mnemonic == "sub" and (re.fullmatch(r"\$0x[0-9a-f]{1,4},%r15", operands) or owner in STRING_FUNCTIONS)
        if re.search(r"%r15[dwb]?\b", operands) and not takes and owner not in COUNT_LOADS:
            errors.append(f"register r15 used in {owner} at {a:#x}: {mnemonic} {operands}")
        if mnemonic.startswith("rep") and not mnemonic.startswith("ret") and owner not in STRING_FUNCTIONS:
            errors.append(f"string instruction in {owner} at {a:#x}")
    return errors


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("guest")
    parser.add_argument("--objdump", default="objdump")
    arguments = parser.parse_args()
    listing = subprocess.run([arguments.objdump, "-d", "--no-show-raw-insn", "-j", ".text", arguments.guest],
                             check=True, capture_output=True, text=True).stdout
    code = Code(listing, loaded_image(arguments.guest))
    if not code.order:
        sys.exit("no code found")
    errors = check(code)
    for error in errors[:20]:
        print(error)
    print(f"{len(code.order)} instructions, {len(code.labels)} functions, {len(code.sites)} sites, {len(errors)} errors")
    sys.exit(1 if errors else 0)


if __name__ == "__main__":
    main()
