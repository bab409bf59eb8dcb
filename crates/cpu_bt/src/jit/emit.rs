//! A small assembler for the fixed sequences around guest instructions (SDM vol. 2A, chapter 2).
//!
//! Host registers are numbers in encoding order. The vCPU is addressed through GS, so code is the same
//! for all vCPUs.

/// Host registers by number.
pub(crate) mod host {
    pub(crate) const RAX: u8 = 0;
    pub(crate) const RCX: u8 = 1;
    pub(crate) const RDX: u8 = 2;
    pub(crate) const RBX: u8 = 3;
    pub(crate) const RSP: u8 = 4;
    pub(crate) const RBP: u8 = 5;
    pub(crate) const RSI: u8 = 6;
    pub(crate) const RDI: u8 = 7;
    pub(crate) const R12: u8 = 12;
    pub(crate) const R13: u8 = 13;
    pub(crate) const R14: u8 = 14;
    pub(crate) const R15: u8 = 15;
}

/// Condition numbers of `Jcc`.
pub(crate) mod cc {
    pub(crate) const E: u8 = 4;
    pub(crate) const NE: u8 = 5;
    pub(crate) const B: u8 = 2;
    pub(crate) const A: u8 = 7;
    pub(crate) const AE: u8 = 3;
    pub(crate) const BE: u8 = 6;
}

/// A memory operand in a page of the host: `[base + index + displacement]`. `index` is not RSP.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Operand {
    pub(crate) base: u8,
    pub(crate) index: Option<u8>,
    pub(crate) displacement: i32,
}

impl Operand {
    /// `[base]`
    pub(crate) fn at(base: u8) -> Operand {
        Operand { base, index: None, displacement: 0 }
    }
}

/// A place in the code, perhaps not known yet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Label(u32);

/// Code under construction, to be placed at a known address.
pub(crate) struct Emit {
    pub(crate) code: Vec<u8>,
    base: u64,
    labels: Vec<u32>,
    fixups: Vec<(u32, Label)>,
}

const UNBOUND: u32 = u32::MAX;

/// Memory for code under construction, kept for the next.
#[derive(Default)]
pub(crate) struct Buffers {
    code: Vec<u8>,
    labels: Vec<u32>,
    fixups: Vec<(u32, Label)>,
}

impl Emit {
    /// Starts code that will stand at `base` in memory that was used before.
    pub(crate) fn reusing(base: u64, buffers: Buffers) -> Emit {
        let Buffers { mut code, mut labels, mut fixups } = buffers;
        code.clear();
        labels.clear();
        fixups.clear();
        Emit { code, base, labels, fixups }
    }

    /// Gives the memory up for the next code.
    pub(crate) fn into_buffers(self) -> Buffers {
        Buffers { code: self.code, labels: self.labels, fixups: self.fixups }
    }

    /// Starts code that will stand at `base`.
    pub(crate) fn new(base: u64) -> Emit {
        Emit { code: Vec::with_capacity(1024), base, labels: Vec::new(), fixups: Vec::new() }
    }

    /// The address of the next byte.
    pub(crate) fn here(&self) -> u64 {
        self.base + self.code.len() as u64
    }

    /// Makes a label to be bound later.
    pub(crate) fn label(&mut self) -> Label {
        self.labels.push(UNBOUND);
        Label(self.labels.len() as u32 - 1)
    }

    /// Binds a label here.
    pub(crate) fn bind(&mut self, label: Label) {
        self.labels[label.0 as usize] = self.code.len() as u32;
    }

    /// The address a label is bound to.
    pub(crate) fn address(&self, label: Label) -> u64 {
        assert!(self.labels[label.0 as usize] != UNBOUND);
        self.base + self.labels[label.0 as usize] as u64
    }

    /// Fills in the distances to labels.
    pub(crate) fn finish(mut self) -> Vec<u8> {
        self.fill_in();
        self.code
    }

    /// Fills in the distances to labels, after which [`Emit::code`] is complete.
    pub(crate) fn fill_in(&mut self) {
        for &(at, label) in &self.fixups {
            let target = self.labels[label.0 as usize];
            assert!(target != UNBOUND, "a label was never bound");
            let distance = target as i32 - (at as i32 + 4);
            self.code[at as usize..at as usize + 4].copy_from_slice(&distance.to_le_bytes());
        }
        self.fixups.clear();
    }

    pub(crate) fn byte(&mut self, byte: u8) {
        self.code.push(byte);
    }

    pub(crate) fn bytes(&mut self, bytes: &[u8]) {
        self.code.extend_from_slice(bytes);
    }

    fn imm32(&mut self, value: i32) {
        self.bytes(&value.to_le_bytes());
    }

    /// Pads with multi-byte NOPs until the address is `remainder` modulo `modulus`.
    pub(crate) fn align(&mut self, modulus: u64, remainder: u64) {
        const NOPS: [&[u8]; 9] = [
            &[0x90],
            &[0x66, 0x90],
            &[0x0f, 0x1f, 0x00],
            &[0x0f, 0x1f, 0x40, 0x00],
            &[0x0f, 0x1f, 0x44, 0x00, 0x00],
            &[0x66, 0x0f, 0x1f, 0x44, 0x00, 0x00],
            &[0x0f, 0x1f, 0x80, 0x00, 0x00, 0x00, 0x00],
            &[0x0f, 0x1f, 0x84, 0x00, 0x00, 0x00, 0x00, 0x00],
            &[0x66, 0x0f, 0x1f, 0x84, 0x00, 0x00, 0x00, 0x00, 0x00],
        ];
        let mut missing = (remainder + modulus - self.here() % modulus) % modulus;
        while missing > 0 {
            let len = missing.min(9);
            self.bytes(NOPS[len as usize - 1]);
            missing -= len;
        }
    }

    fn rex(&mut self, wide: bool, reg: u8, index: u8, base: u8) {
        let rex = 0x40 | (wide as u8) << 3 | (reg >> 3) << 2 | (index >> 3) << 1 | base >> 3;
        if rex != 0x40 {
            self.byte(rex);
        }
    }

    /// An instruction with a register and `gs:[displacement]`.
    fn gs_op(&mut self, wide: bool, opcode: &[u8], reg: u8, displacement: i32) {
        self.byte(0x65);
        self.rex(wide, reg, 0, 0);
        self.bytes(opcode);
        self.bytes(&[(reg & 7) << 3 | 4, 0x25]);
        self.imm32(displacement);
    }

    /// An instruction with a register and `gs:[index + displacement]`; `index` is not RSP or R12.
    fn gs_indexed(&mut self, wide: bool, opcode: &[u8], reg: u8, index: u8, displacement: i32) {
        debug_assert!(index & 7 != 4);
        self.byte(0x65);
        self.rex(wide, reg, 0, index);
        self.bytes(opcode);
        self.byte(0x80 | (reg & 7) << 3 | index & 7);
        self.imm32(displacement);
    }

    /// `mov reg, gs:[displacement]` (9 bytes).
    pub(crate) fn gs_load(&mut self, reg: u8, displacement: i32) {
        self.gs_op(true, &[0x8b], reg, displacement);
    }

    /// `mov gs:[displacement], reg`
    pub(crate) fn gs_store(&mut self, displacement: i32, reg: u8) {
        self.gs_op(true, &[0x89], reg, displacement);
    }

    /// `mov dword gs:[displacement], imm`
    pub(crate) fn gs_store_imm32(&mut self, displacement: i32, value: u32) {
        self.gs_op(false, &[0xc7], 0, displacement);
        self.imm32(value as i32);
    }

    /// `test reg32, gs:[displacement]`
    pub(crate) fn gs_test32(&mut self, reg: u8, displacement: i32) {
        self.gs_op(false, &[0x85], reg, displacement);
    }

    /// `mov byte gs:[displacement], imm`
    pub(crate) fn gs_store8_imm(&mut self, displacement: i32, value: u8) {
        self.gs_op(false, &[0xc6], 0, displacement);
        self.byte(value);
    }

    /// `test byte gs:[displacement], imm`
    pub(crate) fn gs_test8_imm(&mut self, displacement: i32, value: u8) {
        self.gs_op(false, &[0xf6], 0, displacement);
        self.byte(value);
    }

    /// `cmp byte gs:[displacement], imm`
    pub(crate) fn gs_cmp8_imm(&mut self, displacement: i32, value: u8) {
        self.gs_op(false, &[0x80], 7, displacement);
        self.byte(value);
    }

    /// `sub reg, gs:[index + displacement]`
    pub(crate) fn gs_sub_indexed(&mut self, reg: u8, index: u8, displacement: i32) {
        self.gs_indexed(true, &[0x2b], reg, index, displacement);
    }

    /// `add reg, gs:[index + displacement]`
    pub(crate) fn gs_add_indexed(&mut self, reg: u8, index: u8, displacement: i32) {
        self.gs_indexed(true, &[0x03], reg, index, displacement);
    }

    /// `or reg, gs:[displacement]`
    pub(crate) fn gs_or(&mut self, reg: u8, displacement: i32) {
        self.gs_op(true, &[0x0b], reg, displacement);
    }

    /// `or dword gs:[displacement], imm`
    pub(crate) fn gs_or32_imm(&mut self, displacement: i32, value: u32) {
        self.gs_op(false, &[0x81], 1, displacement);
        self.imm32(value as i32);
    }

    /// `add dword gs:[displacement], imm`
    pub(crate) fn gs_add32_imm(&mut self, displacement: i32, value: u32) {
        self.gs_op(false, &[0x81], 0, displacement);
        self.imm32(value as i32);
    }

    /// `add reg, gs:[displacement]`
    pub(crate) fn gs_add(&mut self, reg: u8, displacement: i32) {
        self.gs_op(true, &[0x03], reg, displacement);
    }

    /// `and reg, gs:[displacement]`
    pub(crate) fn gs_and(&mut self, reg: u8, displacement: i32) {
        self.gs_op(true, &[0x23], reg, displacement);
    }

    /// `movzx reg32, byte gs:[displacement]`
    pub(crate) fn gs_load8(&mut self, reg: u8, displacement: i32) {
        self.gs_op(false, &[0x0f, 0xb6], reg, displacement);
    }

    /// `mov gs:[displacement], reg8`; R8 or higher.
    pub(crate) fn gs_store8(&mut self, displacement: i32, reg: u8) {
        debug_assert!(reg >= 8);
        self.gs_op(false, &[0x88], reg, displacement);
    }

    /// `jmp gs:[base + displacement]`; `base` is not RSP or R12.
    pub(crate) fn gs_jmp(&mut self, base: u8, displacement: i32) {
        self.gs_indexed(false, &[0xff], 4, base, displacement);
    }

    /// `push reg; popfq`; R8 or higher. The stack is the host's.
    pub(crate) fn host_flags_from(&mut self, reg: u8) {
        debug_assert!(reg >= 8);
        self.bytes(&[0x41, 0x50 | reg & 7, 0x9d]);
    }

    /// `and dword gs:[displacement], imm`
    pub(crate) fn gs_and32_imm(&mut self, displacement: i32, value: u32) {
        self.gs_op(false, &[0x81], 4, displacement);
        self.imm32(value as i32);
    }

    /// `pushfq; pop reg`; R8 or higher. The stack is the host's.
    pub(crate) fn host_flags_to(&mut self, reg: u8) {
        debug_assert!(reg >= 8);
        self.bytes(&[0x9c, 0x41, 0x58 | reg & 7]);
    }

    /// `cmp reg, gs:[displacement]`
    pub(crate) fn gs_cmp(&mut self, reg: u8, displacement: i32) {
        self.gs_op(true, &[0x3b], reg, displacement);
    }

    /// `cmp dword gs:[index << scale + displacement], imm`
    pub(crate) fn gs_cmp32_scaled_imm(&mut self, index: u8, scale: u8, displacement: i32, value: u32) {
        self.byte(0x65);
        self.rex(false, 0, index, 0);
        self.bytes(&[0x81, 7 << 3 | 4, scale << 6 | (index & 7) << 3 | 5]);
        self.imm32(displacement);
        self.imm32(value as i32);
    }

    /// `mov reg, gs:[index << scale + displacement]`
    pub(crate) fn gs_load_scaled(&mut self, reg: u8, index: u8, scale: u8, displacement: i32) {
        self.byte(0x65);
        self.rex(true, reg, index, 0);
        self.bytes(&[0x8b, (reg & 7) << 3 | 4, scale << 6 | (index & 7) << 3 | 5]);
        self.imm32(displacement);
    }

    /// `cmp reg, gs:[index << scale + displacement]`
    pub(crate) fn gs_cmp_scaled(&mut self, reg: u8, index: u8, scale: u8, displacement: i32) {
        self.byte(0x65);
        self.rex(true, reg, index, 0);
        self.bytes(&[0x3b, (reg & 7) << 3 | 4, scale << 6 | (index & 7) << 3 | 5]);
        self.imm32(displacement);
    }

    /// `push qword gs:[displacement]`
    pub(crate) fn gs_push(&mut self, displacement: i32) {
        self.gs_op(false, &[0xff], 6, displacement);
    }

    /// `call gs:[index*8 + displacement]`
    pub(crate) fn gs_call_scaled(&mut self, index: u8, displacement: i32) {
        self.byte(0x65);
        self.rex(false, 0, index, 0);
        self.bytes(&[0xff, 0x14, 0xc5 | (index & 7) << 3]);
        self.imm32(displacement);
    }

    /// `push reg`
    pub(crate) fn push(&mut self, reg: u8) {
        self.rex(false, 0, 0, reg);
        self.byte(0x50 | reg & 7);
    }

    /// `cmp a, b`
    pub(crate) fn cmp(&mut self, a: u8, b: u8) {
        self.rex(true, b, 0, a);
        self.bytes(&[0x39, 0xc0 | (b & 7) << 3 | a & 7]);
    }

    /// `cmp reg, [base + displacement]`
    pub(crate) fn cmp_at(&mut self, reg: u8, base: u8, displacement: i32) {
        self.memory(true, 0x3b, reg, Some(base), None, displacement);
    }

    /// `test dword [base + displacement], imm`
    pub(crate) fn test32_imm_at(&mut self, base: u8, displacement: i32, value: u32) {
        self.memory(false, 0xf7, 0, Some(base), None, displacement);
        self.imm32(value as i32);
    }

    /// `ret`
    pub(crate) fn ret(&mut self) {
        self.byte(0xc3);
    }

    /// `call label` whose distance can be patched in one step: returns the address of the distance.
    pub(crate) fn call_patchable(&mut self, label: Label) -> u64 {
        self.align(4, 3);
        self.byte(0xe8);
        self.fixups.push((self.code.len() as u32, label));
        self.imm32(0);
        self.here() - 4
    }

    /// `jmp gs:[index*8 + displacement]`
    pub(crate) fn gs_jmp_scaled(&mut self, index: u8, displacement: i32) {
        self.byte(0x65);
        self.rex(false, 0, index, 0);
        self.bytes(&[0xff, 0x24, 0xc5 | (index & 7) << 3]);
        self.imm32(displacement);
    }

    /// `mov dst, src`
    pub(crate) fn mov(&mut self, dst: u8, src: u8) {
        if dst != src {
            self.rex(true, src, 0, dst);
            self.bytes(&[0x89, 0xc0 | (src & 7) << 3 | dst & 7]);
        }
    }

    /// `mov dst32, src32`: clears the upper half.
    pub(crate) fn mov32(&mut self, dst: u8, src: u8) {
        self.rex(false, src, 0, dst);
        self.bytes(&[0x89, 0xc0 | (src & 7) << 3 | dst & 7]);
    }

    /// `movzx dst32, src16`
    pub(crate) fn movzx16(&mut self, dst: u8, src: u8) {
        self.rex(false, dst, 0, src);
        self.bytes(&[0x0f, 0xb7, 0xc0 | (dst & 7) << 3 | src & 7]);
    }

    /// `mov dst, imm` in the shortest form.
    pub(crate) fn mov_imm(&mut self, dst: u8, value: u64) {
        if value <= u32::MAX as u64 {
            self.rex(false, 0, 0, dst);
            self.byte(0xb8 | dst & 7);
            self.imm32(value as i32);
        } else if value as i64 == value as i32 as i64 {
            self.rex(true, 0, 0, dst);
            self.bytes(&[0xc7, 0xc0 | dst & 7]);
            self.imm32(value as i32);
        } else {
            self.rex(true, 0, 0, dst);
            self.byte(0xb8 | dst & 7);
            self.bytes(&value.to_le_bytes());
        }
    }

    /// `lea dst, [base + displacement]`, always with a 32-bit displacement (7 or 8 bytes).
    pub(crate) fn lea_disp32(&mut self, dst: u8, base: u8, displacement: i32) {
        self.lea_long(true, dst, base, displacement);
    }

    /// The same cut to 32 bits: `lea dst32, [base + displacement]`.
    pub(crate) fn lea32_disp32(&mut self, dst: u8, base: u8, displacement: i32) {
        self.lea_long(false, dst, base, displacement);
    }

    fn lea_long(&mut self, wide: bool, dst: u8, base: u8, displacement: i32) {
        self.rex(wide, dst, 0, base);
        self.byte(0x8d);
        self.byte(0x80 | (dst & 7) << 3 | base & 7);
        if base & 7 == 4 {
            self.byte(0x24);
        }
        self.imm32(displacement);
    }

    /// `lea dst, [base + index << scale + displacement]`; with `wide` false the result is cut to 32 bits.
    pub(crate) fn lea(
        &mut self,
        wide: bool,
        dst: u8,
        base: Option<u8>,
        index: Option<(u8, u8)>,
        displacement: i32,
    ) {
        self.memory(wide, 0x8d, dst, base, index, displacement);
    }

    /// An instruction of one byte with a register and a memory operand.
    fn memory(
        &mut self,
        wide: bool,
        opcode: u8,
        reg: u8,
        base: Option<u8>,
        index: Option<(u8, u8)>,
        displacement: i32,
    ) {
        let (index_number, scale) = index.unwrap_or((4, 0));
        self.rex(wide, reg, index.map_or(0, |i| i.0), base.unwrap_or(0));
        self.byte(opcode);
        let reg = (reg & 7) << 3;
        let small = displacement as i8 as i32 == displacement;
        match base {
            None => {
                self.bytes(&[reg | 4, scale << 6 | (index_number & 7) << 3 | 5]);
                self.imm32(displacement);
            }
            Some(base) => {
                let mode = match displacement {
                    0 if base & 7 != 5 => 0x00,
                    _ if small => 0x40,
                    _ => 0x80,
                };
                if index.is_some() || base & 7 == 4 {
                    self.bytes(&[mode | reg | 4, scale << 6 | (index_number & 7) << 3 | base & 7]);
                } else {
                    self.byte(mode | reg | base & 7);
                }
                match mode {
                    0x40 => self.byte(displacement as u8),
                    0x80 => self.imm32(displacement),
                    _ => {}
                }
            }
        }
    }

    /// `mov dst, operand`
    pub(crate) fn load64_at(&mut self, dst: u8, operand: Operand) {
        let index = operand.index.map(|index| (index, 0));
        self.memory(true, 0x8b, dst, Some(operand.base), index, operand.displacement);
    }

    /// `mov dst32, operand`
    pub(crate) fn load32_at(&mut self, dst: u8, operand: Operand) {
        let index = operand.index.map(|index| (index, 0));
        self.memory(false, 0x8b, dst, Some(operand.base), index, operand.displacement);
    }

    /// `mov operand, src`
    pub(crate) fn store64_at(&mut self, operand: Operand, src: u8) {
        let index = operand.index.map(|index| (index, 0));
        self.memory(true, 0x89, src, Some(operand.base), index, operand.displacement);
    }

    /// `mov operand, src32`
    pub(crate) fn store32_at(&mut self, operand: Operand, src: u8) {
        let index = operand.index.map(|index| (index, 0));
        self.memory(false, 0x89, src, Some(operand.base), index, operand.displacement);
    }

    /// Loads `size` bytes at the address in `base` into the low part of `dst`; 4 bytes clear the rest.
    pub(crate) fn load_sized(&mut self, size: usize, dst: u8, base: u8) {
        self.sized(size, 0x8a, dst, base);
    }

    /// Stores the low `size` bytes of `src` at the address in `base`.
    pub(crate) fn store_sized(&mut self, size: usize, base: u8, src: u8) {
        self.sized(size, 0x88, src, base);
    }

    /// MOV of `size` bytes between a register, of the low bytes RAX to RBX or R8 and up, and memory.
    fn sized(&mut self, size: usize, opcode: u8, reg: u8, base: u8) {
        if size == 2 {
            self.byte(0x66);
        }
        self.memory(size == 8, opcode | (size != 1) as u8, reg, Some(base), None, 0);
    }

    /// Loads `size` bytes at the address in `base` into `dst` and clears the rest.
    pub(crate) fn load_zero_extended(&mut self, size: usize, dst: u8, base: u8) {
        if size >= 4 {
            return self.load_sized(size, dst, base);
        }
        self.rex(false, dst, 0, base);
        self.bytes(&[0x0f, if size == 1 { 0xb6 } else { 0xb7 }, (dst & 7) << 3 | base & 7]);
    }

    /// `mov dword operand, imm`
    pub(crate) fn store32_imm_at(&mut self, operand: Operand, value: i32) {
        let index = operand.index.map(|index| (index, 0));
        self.memory(false, 0xc7, 0, Some(operand.base), index, operand.displacement);
        self.imm32(value);
    }

    /// `mov qword operand, imm` (sign-extended)
    pub(crate) fn store64_imm_at(&mut self, operand: Operand, value: i32) {
        let index = operand.index.map(|index| (index, 0));
        self.memory(true, 0xc7, 0, Some(operand.base), index, operand.displacement);
        self.imm32(value);
    }

    /// `mov dst32, gs:[displacement]`
    pub(crate) fn gs_load32(&mut self, dst: u8, displacement: i32) {
        self.gs_op(false, &[0x8b], dst, displacement);
    }

    /// `reg += gs:[displacement]` without touching flags. Uses `scratch`.
    pub(crate) fn gs_add_keeping_flags(&mut self, reg: u8, scratch: u8, displacement: i32) {
        self.gs_load(scratch, displacement);
        self.lea(true, reg, Some(reg), Some((scratch, 0)), 0);
    }

    /// `sub reg, gs:[displacement]`
    pub(crate) fn gs_sub(&mut self, reg: u8, displacement: i32) {
        self.gs_op(true, &[0x2b], reg, displacement);
    }

    /// `mov byte gs:[displacement], imm`
    pub(crate) fn gs_store_imm8(&mut self, displacement: i32, value: u8) {
        self.gs_op(false, &[0xc6], 0, displacement);
        self.byte(value);
    }

    /// `mov reg, gs:[index + displacement]`
    pub(crate) fn gs_load_indexed(&mut self, reg: u8, index: u8, displacement: i32) {
        self.gs_indexed(true, &[0x8b], reg, index, displacement);
    }

    /// `mov gs:[index + displacement], reg`
    pub(crate) fn gs_store_indexed(&mut self, index: u8, displacement: i32, reg: u8) {
        self.gs_indexed(true, &[0x89], reg, index, displacement);
    }

    /// `cmp reg, gs:[index + displacement]`
    pub(crate) fn gs_cmp_indexed(&mut self, reg: u8, index: u8, displacement: i32) {
        self.gs_indexed(true, &[0x3b], reg, index, displacement);
    }

    /// `sub dword gs:[index + displacement], 1`
    pub(crate) fn gs_decrement_indexed(&mut self, index: u8, displacement: i32) {
        self.gs_indexed(false, &[0x83], 5, index, displacement);
        self.byte(1);
    }

    /// `sub dword gs:[displacement], 1`
    pub(crate) fn gs_decrement(&mut self, displacement: i32) {
        self.gs_op(false, &[0x83], 5, displacement);
        self.byte(1);
    }

    /// `add dword gs:[displacement], 1`
    pub(crate) fn gs_increment(&mut self, displacement: i32) {
        self.gs_op(false, &[0x83], 0, displacement);
        self.byte(1);
    }

    /// `mov dword gs:[index * 4 + displacement], src32`
    pub(crate) fn gs_store32_scaled(&mut self, index: u8, displacement: i32, src: u8) {
        self.byte(0x65);
        self.rex(false, src, index, 0);
        self.bytes(&[0x89, (src & 7) << 3 | 4, 2 << 6 | (index & 7) << 3 | 5]);
        self.imm32(displacement);
    }

    /// `and reg, imm` (sign-extended)
    pub(crate) fn and_imm(&mut self, reg: u8, value: i32) {
        self.rex(true, 0, 0, reg);
        self.bytes(&[0x81, 0xe0 | reg & 7]);
        self.imm32(value);
    }

    /// `sub dst, src`
    pub(crate) fn sub(&mut self, dst: u8, src: u8) {
        self.rex(true, src, 0, dst);
        self.bytes(&[0x29, 0xc0 | (src & 7) << 3 | dst & 7]);
    }

    /// `xor dst, src`
    pub(crate) fn xor(&mut self, dst: u8, src: u8) {
        self.rex(true, src, 0, dst);
        self.bytes(&[0x31, 0xc0 | (src & 7) << 3 | dst & 7]);
    }

    /// `rorx dst, src, count` (BMI2): rotates without touching flags.
    pub(crate) fn rorx(&mut self, dst: u8, src: u8, count: u8) {
        self.byte(0xc4);
        self.byte((!dst >> 3 & 1) << 7 | 1 << 6 | (!src >> 3 & 1) << 5 | 3);
        self.bytes(&[0xfb, 0xf0, 0xc0 | (dst & 7) << 3 | src & 7, count]);
    }

    /// `sarx dst, src, count` (BMI2): shifts without touching flags.
    pub(crate) fn sarx(&mut self, wide: bool, dst: u8, src: u8, count: u8) {
        self.byte(0xc4);
        self.byte((!dst >> 3 & 1) << 7 | 1 << 6 | (!src >> 3 & 1) << 5 | 2);
        self.bytes(&[(wide as u8) << 7 | (!count & 0xf) << 3 | 2, 0xf7, 0xc0 | (dst & 7) << 3 | src & 7]);
    }

    /// `movsxd dst, src32`
    pub(crate) fn movsxd(&mut self, dst: u8, src: u8) {
        self.rex(true, dst, 0, src);
        self.bytes(&[0x63, 0xc0 | (dst & 7) << 3 | src & 7]);
    }

    /// `not reg`
    pub(crate) fn not(&mut self, reg: u8) {
        self.rex(true, 0, 0, reg);
        self.bytes(&[0xf7, 0xd0 | reg & 7]);
    }

    /// `sar reg, count`
    pub(crate) fn sar(&mut self, reg: u8, count: u8) {
        self.rex(true, 0, 0, reg);
        self.bytes(&[0xc1, 0xf8 | reg & 7, count]);
    }

    /// `movzx dst32, word gs:[displacement]`
    pub(crate) fn gs_load16(&mut self, dst: u8, displacement: i32) {
        self.gs_op(false, &[0x0f, 0xb7], dst, displacement);
    }

    /// `shr reg, count`
    pub(crate) fn shr(&mut self, reg: u8, count: u8) {
        self.rex(true, 0, 0, reg);
        self.bytes(&[0xc1, 0xe8 | reg & 7, count]);
    }

    /// `shl reg, count`
    pub(crate) fn shl(&mut self, reg: u8, count: u8) {
        self.rex(true, 0, 0, reg);
        self.bytes(&[0xc1, 0xe0 | reg & 7, count]);
    }

    /// `mov dst8, src8`; the low bytes, `src` R8 or higher.
    pub(crate) fn mov8(&mut self, dst: u8, src: u8) {
        debug_assert!(src >= 8);
        self.rex(false, src, 0, dst);
        self.bytes(&[0x88, 0xc0 | (src & 7) << 3 | dst & 7]);
    }

    /// `and reg32, imm`
    pub(crate) fn and32_imm(&mut self, reg: u8, value: u32) {
        self.rex(false, 0, 0, reg);
        self.bytes(&[0x81, 0xe0 | reg & 7]);
        self.imm32(value as i32);
    }

    /// `cmp reg, imm`
    pub(crate) fn cmp_imm(&mut self, reg: u8, value: i32) {
        self.rex(true, 0, 0, reg);
        self.bytes(&[0x81, 0xf8 | reg & 7]);
        self.imm32(value);
    }

    /// `test reg8, imm`; R8 or higher.
    pub(crate) fn test8_imm(&mut self, reg: u8, value: u8) {
        debug_assert!(reg >= 8);
        self.rex(false, 0, 0, reg);
        self.bytes(&[0xf6, 0xc0 | reg & 7, value]);
    }

    /// `lahf; seto al`: flags into AX.
    pub(crate) fn flags_to_ax(&mut self) {
        self.bytes(&[0x9f, 0x0f, 0x90, 0xc0]);
    }

    /// `add al, 0x7f; sahf`: flags back from AX as [`Emit::flags_to_ax`] left them.
    pub(crate) fn flags_from_ax(&mut self) {
        self.bytes(&[0x04, 0x7f, 0x9e]);
    }

    /// `jcc label`
    pub(crate) fn jcc(&mut self, condition: u8, label: Label) {
        self.bytes(&[0x0f, 0x80 | condition]);
        self.fixups.push((self.code.len() as u32, label));
        self.imm32(0);
    }

    /// `jmp label`
    pub(crate) fn jmp(&mut self, label: Label) {
        self.byte(0xe9);
        self.fixups.push((self.code.len() as u32, label));
        self.imm32(0);
    }

    /// `jmp address`
    pub(crate) fn jmp_to(&mut self, address: u64) {
        self.byte(0xe9);
        let distance = address.wrapping_sub(self.here() + 4) as i32;
        self.imm32(distance);
    }

    /// `jmp label` whose distance can be patched in one step: returns the address of the distance.
    pub(crate) fn jmp_patchable(&mut self, label: Label) -> u64 {
        self.align(4, 3);
        self.jmp(label);
        self.here() - 4
    }

    /// `jcc label` whose distance can be patched in one step: returns the address of the distance.
    pub(crate) fn jcc_patchable(&mut self, condition: u8, label: Label) -> u64 {
        self.align(4, 2);
        self.jcc(condition, label);
        self.here() - 4
    }

    /// `call address`
    pub(crate) fn call_to(&mut self, address: u64) {
        self.byte(0xe8);
        let distance = address.wrapping_sub(self.here() + 4) as i32;
        self.imm32(distance);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use iced_x86::{Decoder, DecoderOptions, Formatter, IntelFormatter};

    /// What a decoder makes of emitted code.
    fn text(emit: impl FnOnce(&mut Emit)) -> String {
        let mut e = Emit::new(0x1000);
        emit(&mut e);
        let code = e.finish();
        let mut formatter = IntelFormatter::new();
        let mut lines = Vec::new();
        for insn in Decoder::with_ip(64, &code, 0x1000, DecoderOptions::NONE) {
            let mut line = String::new();
            formatter.format(&insn, &mut line);
            lines.push(line);
        }
        lines.join("; ")
    }

    #[test]
    fn a_decoder_reads_what_was_meant() {
        type Case = (fn(&mut Emit), &'static str);
        let cases: [Case; 63] = [
            (|e| e.gs_load(14, 0x40), "mov r14,gs:[40h]"),
            (|e| e.gs_store(0x40, 3), "mov gs:[40h],rbx"),
            (|e| e.gs_store_imm32(0x40, 7), "mov dword ptr gs:[40h],7"),
            (|e| e.gs_test32(13, 0x40), "test gs:[40h],r13d"),
            (|e| e.gs_cmp8_imm(0x40, 1), "cmp byte ptr gs:[40h],1"),
            (|e| e.gs_cmp(14, 0x40), "cmp r14,gs:[40h]"),
            (|e| e.gs_or(13, 0x40), "or r13,gs:[40h]"),
            (|e| e.gs_or32_imm(0x40, 0x200), "or dword ptr gs:[40h],200h"),
            (|e| e.gs_and32_imm(0x40, !1), "and dword ptr gs:[40h],0FFFFFFFEh"),
            (|e| e.host_flags_to(13), "pushfq; pop r13"),
            (|e| e.gs_sub_indexed(14, 13, 0x400), "sub r14,gs:[r13+400h]"),
            (|e| e.gs_add_indexed(14, 13, 0x400), "add r14,gs:[r13+400h]"),
            (|e| e.gs_cmp32_scaled_imm(13, 2, 0x400, 9), "cmp dword ptr gs:[r13*4+400h],9"),
            (|e| e.gs_jmp_scaled(13, 0x400), "jmp qword ptr gs:[r13*8+400h]"),
            (|e| e.mov(15, 1), "mov r15,rcx"),
            (|e| e.mov32(1, 14), "mov ecx,r14d"),
            (|e| e.movzx16(13, 14), "movzx r13d,r14w"),
            (|e| e.mov_imm(3, 5), "mov ebx,5"),
            (|e| e.mov_imm(11, u64::MAX), "mov r11,0FFFFFFFFFFFFFFFFh"),
            (|e| e.mov_imm(11, 1 << 40), "mov r11,10000000000h"),
            (|e| e.lea_disp32(14, 12, -8), "lea r14,[r12-8]"),
            (|e| e.lea(true, 14, Some(13), None, 0), "lea r14,[r13]"),
            (|e| e.lea(true, 14, Some(5), Some((12, 2)), 0x1234), "lea r14,[rbp+r12*4+1234h]"),
            (|e| e.lea(false, 14, Some(4), Some((0, 0)), 8), "lea r14d,[rsp+rax+8]"),
            (|e| e.lea(true, 14, None, Some((9, 3)), -1), "lea r14,[r9*8-1]"),
            (|e| e.rorx(13, 14, 8), "rorx r13,r14,8"),
            (|e| e.shr(13, 12), "shr r13,0Ch"),
            (|e| e.and32_imm(13, 0x3ff0), "and r13d,3FF0h"),
            (|e| e.cmp_imm(14, 4088), "cmp r14,0FF8h"),
            (|e| e.test8_imm(14, 15), "test r14b,0Fh"),
            (|e| e.test32_imm_at(14, 8, 1), "test dword ptr [r14+8],1"),
            (|e| e.load64_at(13, Operand::at(14)), "mov r13,[r14]"),
            (|e| e.load64_at(0, Operand { base: 13, index: None, displacement: 0 }), "mov rax,[r13]"),
            (
                |e| e.store64_at(Operand { base: 15, index: Some(13), displacement: -8 }, 3),
                "mov [r15+r13-8],rbx",
            ),
            (|e| e.store64_imm_at(Operand::at(14), -2), "mov qword ptr [r14],0FFFFFFFFFFFFFFFEh"),
            (|e| e.gs_load_scaled(14, 13, 3, 0x400), "mov r14,gs:[r13*8+400h]"),
            (|e| e.gs_cmp_scaled(13, 14, 3, 0x40), "cmp r13,gs:[r14*8+40h]"),
            (|e| e.gs_push(0x40), "push qword ptr gs:[40h]"),
            (|e| e.gs_call_scaled(13, 0x40), "call qword ptr gs:[r13*8+40h]"),
            (|e| e.push(14), "push r14"),
            (|e| e.cmp_at(14, 4, 8), "cmp r14,[rsp+8]"),
            (|e| e.cmp(14, 13), "cmp r14,r13"),
            (Emit::ret, "ret"),
            (|e| e.gs_sub(14, 0x40), "sub r14,gs:[40h]"),
            (|e| e.gs_add(14, 0x40), "add r14,gs:[40h]"),
            (|e| e.gs_load32(1, 0x40), "mov ecx,gs:[40h]"),
            (|e| e.gs_store_imm8(0x40, 1), "mov byte ptr gs:[40h],1"),
            (|e| e.gs_load_indexed(13, 13, 0x40), "mov r13,gs:[r13+40h]"),
            (|e| e.gs_store_indexed(1, 0x40, 13), "mov gs:[rcx+40h],r13"),
            (|e| e.gs_cmp_indexed(0, 13, 0x40), "cmp rax,gs:[r13+40h]"),
            (|e| e.gs_decrement_indexed(1, 0x40), "sub dword ptr gs:[rcx+40h],1"),
            (|e| e.gs_decrement(0x40), "sub dword ptr gs:[40h],1"),
            (|e| e.gs_increment(0x40), "add dword ptr gs:[40h],1"),
            (|e| e.gs_store32_scaled(0, 0x40, 1), "mov gs:[rax*4+40h],ecx"),
            (|e| e.and_imm(0, -4096), "and rax,0FFFFFFFFFFFFF000h"),
            (|e| e.sub(13, 0), "sub r13,rax"),
            (|e| e.xor(13, 0), "xor r13,rax"),
            (|e| e.sarx(true, 13, 1, 13), "sarx r13,rcx,r13"),
            (|e| e.sarx(false, 13, 9, 13), "sarx r13d,r9d,r13d"),
            (|e| e.movsxd(13, 13), "movsxd r13,r13d"),
            (|e| e.not(13), "not r13"),
            (|e| e.sar(13, 16), "sar r13,10h"),
            (|e| e.gs_load16(14, 0x40), "movzx r14d,word ptr gs:[40h]"),
        ];
        for (emit, expected) in cases {
            assert_eq!(text(emit), expected);
        }
    }

    #[test]
    fn flags_survive_in_ax() {
        assert_eq!(text(Emit::flags_to_ax), "lahf; seto al");
        assert_eq!(text(Emit::flags_from_ax), "add al,7Fh; sahf");
    }

    #[test]
    fn branches_reach_their_labels_and_patchable_ones_are_aligned() {
        let listing = text(|e| {
            let label = e.label();
            e.byte(0x90);
            let at = e.jcc_patchable(cc::NE, label);
            assert_eq!(at % 4, 0);
            let at = e.jmp_patchable(label);
            assert_eq!(at % 4, 0);
            e.bind(label);
            e.jmp_to(0x1000);
            e.call_to(0x1000);
        });
        assert!(listing.starts_with("nop; "), "{listing}");
        assert!(
            listing.contains("jne 0000000000001010h") && listing.ends_with("call 0000000000001000h"),
            "{listing}"
        );
    }

    #[test]
    fn padding_is_no_operations() {
        for missing in 1..16 {
            let listing = text(|e| e.align(16, missing));
            assert!(
                listing.split("; ").all(|line| line.starts_with("nop") || line == "xchg ax,ax"),
                "{listing}"
            );
        }
    }
}
