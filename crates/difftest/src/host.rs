//! Executes cases on the host processor, in a child process.
//!
//! The child maps code and data where the cases want them, loads all registers, jumps to the code and
//! saves all registers when it is through. A fault raises a signal, whose handler notes the exception
//! and continues at the saving end, so that the state is captured the same way.

use crate::case::{
    Bits, CODE, Case, DATA, DATA_LEN, Ending, GS_BASE, PAGE, READ_ONLY, State, Trap, Until, background,
};
use std::arch::global_asm;
use std::ffi::c_void;
use std::sync::atomic::{AtomicU32, Ordering};

/// Cases per child.
const BATCH: usize = 256;
/// Longest life of a child in seconds.
const CHILD_SECONDS: u32 = 60;

/// Loaded before a case and stored after it. Only in the child, which has one thread.
static mut STATE: State = State::ZERO;
static mut HOST_RSP: u64 = 0;
static mut HAS_AVX: u8 = 0;
static mut TRAP: Option<Trap> = None;
/// Where to enter a case: offset and code segment.
static mut TARGET: Far = Far { offset: 0, selector: 0 };

/// A far pointer as far jumps take it, aligned for code whose accesses are checked.
#[repr(C, align(16))]
struct Far {
    offset: u32,
    selector: u16,
}

/// Linux's segments for user code of 64 and 32 bits, and for data.
const CODE_64: u16 = 0x33;
const CODE_32: u16 = 0x23;
const DATA_32: u16 = 0x2b;
/// `arch_prctl`: set the base of GS.
const ARCH_SET_GS: i32 = 0x1001;
/// Where in the code page 32-bit code finds the way back.
const WAY_BACK: u64 = CODE + PAGE as u64 - 16;

// The offsets are those of `State`.
const _: () = {
    assert!(std::mem::offset_of!(State, fx) == 512);
    assert!(std::mem::offset_of!(State, gpr) == 1024);
    assert!(std::mem::offset_of!(State, rip) == 1152);
    assert!(std::mem::offset_of!(State, rflags) == 1160);
    assert!(std::mem::offset_of!(State, mxcsr) == 1168);
};

global_asm!(
    ".globl difftest_enter",
    "difftest_enter:",
    "push rbx", "push rbp", "push r12", "push r13", "push r14", "push r15",
    "mov [rip + {host_rsp}], rsp",
    "fxrstor64 [rip + {state} + 512]",
    "cmp byte ptr [rip + {avx}], 0",
    "je 2f",
    "vmovups ymm0, [rip + {state}]", "vmovups ymm1, [rip + {state} + 32]",
    "vmovups ymm2, [rip + {state} + 64]", "vmovups ymm3, [rip + {state} + 96]",
    "vmovups ymm4, [rip + {state} + 128]", "vmovups ymm5, [rip + {state} + 160]",
    "vmovups ymm6, [rip + {state} + 192]", "vmovups ymm7, [rip + {state} + 224]",
    "vmovups ymm8, [rip + {state} + 256]", "vmovups ymm9, [rip + {state} + 288]",
    "vmovups ymm10, [rip + {state} + 320]", "vmovups ymm11, [rip + {state} + 352]",
    "vmovups ymm12, [rip + {state} + 384]", "vmovups ymm13, [rip + {state} + 416]",
    "vmovups ymm14, [rip + {state} + 448]", "vmovups ymm15, [rip + {state} + 480]",
    "2:",
    "ldmxcsr [rip + {state} + 1168]",
    "push qword ptr [rip + {state} + 1160]",
    "popfq",
    "mov rax, [rip + {state} + 1024]", "mov rcx, [rip + {state} + 1032]",
    "mov rdx, [rip + {state} + 1040]", "mov rbx, [rip + {state} + 1048]",
    "mov rsp, [rip + {state} + 1056]", "mov rbp, [rip + {state} + 1064]",
    "mov rsi, [rip + {state} + 1072]", "mov rdi, [rip + {state} + 1080]",
    "mov r8, [rip + {state} + 1088]", "mov r9, [rip + {state} + 1096]",
    "mov r10, [rip + {state} + 1104]", "mov r11, [rip + {state} + 1112]",
    "mov r12, [rip + {state} + 1120]", "mov r13, [rip + {state} + 1128]",
    "mov r14, [rip + {state} + 1136]", "mov r15, [rip + {state} + 1144]",
    "jmp fword ptr [rip + {target}]",
    ".globl difftest_leave",
    "difftest_leave:",
    "mov [rip + {state} + 1024], rax", "mov [rip + {state} + 1032], rcx",
    "mov [rip + {state} + 1040], rdx", "mov [rip + {state} + 1048], rbx",
    "mov [rip + {state} + 1056], rsp", "mov [rip + {state} + 1064], rbp",
    "mov [rip + {state} + 1072], rsi", "mov [rip + {state} + 1080], rdi",
    "mov [rip + {state} + 1088], r8", "mov [rip + {state} + 1096], r9",
    "mov [rip + {state} + 1104], r10", "mov [rip + {state} + 1112], r11",
    "mov [rip + {state} + 1120], r12", "mov [rip + {state} + 1128], r13",
    "mov [rip + {state} + 1136], r14", "mov [rip + {state} + 1144], r15",
    "mov rsp, [rip + {host_rsp}]",
    "pushfq",
    "pop [rip + {state} + 1160]",
    // Rust code knows nothing of DF and AC.
    "push 2",
    "popfq",
    "stmxcsr [rip + {state} + 1168]",
    "cmp byte ptr [rip + {avx}], 0",
    "je 2f",
    "vmovups [rip + {state}], ymm0", "vmovups [rip + {state} + 32], ymm1",
    "vmovups [rip + {state} + 64], ymm2", "vmovups [rip + {state} + 96], ymm3",
    "vmovups [rip + {state} + 128], ymm4", "vmovups [rip + {state} + 160], ymm5",
    "vmovups [rip + {state} + 192], ymm6", "vmovups [rip + {state} + 224], ymm7",
    "vmovups [rip + {state} + 256], ymm8", "vmovups [rip + {state} + 288], ymm9",
    "vmovups [rip + {state} + 320], ymm10", "vmovups [rip + {state} + 352], ymm11",
    "vmovups [rip + {state} + 384], ymm12", "vmovups [rip + {state} + 416], ymm13",
    "vmovups [rip + {state} + 448], ymm14", "vmovups [rip + {state} + 480], ymm15",
    "vzeroupper",
    "2:",
    "fxsave64 [rip + {state} + 512]",
    "fninit",
    "push 0x1f80",
    "ldmxcsr [rsp]",
    "pop rax",
    "pop r15", "pop r14", "pop r13", "pop r12", "pop rbp", "pop rbx",
    "ret",
    state = sym STATE,
    host_rsp = sym HOST_RSP,
    avx = sym HAS_AVX,
    target = sym TARGET,
);

unsafe extern "sysv64" {
    fn difftest_enter();
    fn difftest_leave();
}

/// What parent and child share.
#[repr(C)]
struct Shared {
    /// The case that the child works on; all before it are done.
    at: AtomicU32,
    cases: [Case; BATCH],
    endings: [Ending; BATCH],
}

/// How the host fared with a case.
pub(crate) enum HostEnding {
    Ended(Box<Ending>),
    /// The child died of this wait status: the case cannot be used.
    Died(i32),
}

/// Executes cases.
pub(crate) fn run(cases: &[Case]) -> Vec<HostEnding> {
    let background = background();
    let mut endings = Vec::with_capacity(cases.len());
    while endings.len() < cases.len() {
        let rest = &cases[endings.len()..];
        run_batch(&rest[..rest.len().min(BATCH)], &background, &mut endings);
    }
    endings
}

/// Runs a child over the cases; adds an ending for each one that it tried.
fn run_batch(cases: &[Case], background: &[u8], endings: &mut Vec<HostEnding>) {
    // SAFETY: a new mapping at an address of the kernel's choice; zero bytes are a valid `Shared`.
    let shared = unsafe {
        let (protection, flags) =
            (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_SHARED | libc::MAP_ANONYMOUS);
        let at = libc::mmap(std::ptr::null_mut(), size_of::<Shared>(), protection, flags, -1, 0);
        assert_ne!(at, libc::MAP_FAILED, "no memory for {} cases", cases.len());
        &mut *at.cast::<Shared>()
    };
    shared.cases[..cases.len()].copy_from_slice(cases);
    let mut status = 0;
    // SAFETY: the child uses only system calls and memory that exists, and ends in `_exit`.
    unsafe {
        match libc::fork() {
            -1 => panic!("cannot fork: {}", std::io::Error::last_os_error()),
            0 => child(shared, cases.len(), background),
            child => {
                while libc::waitpid(child, &mut status, 0) < 0 {
                    assert_eq!(*libc::__errno_location(), libc::EINTR, "cannot wait for the child");
                }
            }
        }
    }
    let done = shared.at.load(Ordering::SeqCst) as usize;
    endings.extend(shared.endings[..done].iter().map(|ending| HostEnding::Ended(Box::new(*ending))));
    if done < cases.len() {
        endings.push(HostEnding::Died(status));
    }
    // SAFETY: mapped above with this size; nothing refers to it any more.
    unsafe { libc::munmap((shared as *mut Shared).cast(), size_of::<Shared>()) };
}

/// The child's life.
///
/// # Safety
/// In a child that has just been forked.
unsafe fn child(shared: &mut Shared, count: usize, background: &[u8]) -> ! {
    // SAFETY: system calls with valid arguments; the fixed mappings replace nothing (asserted by the
    // flag); assembly that keeps to the ABI.
    unsafe {
        libc::alarm(CHILD_SECONDS);
        let map = |at: u64, len: usize, protection: i32| {
            let flags =
                libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_FIXED_NOREPLACE | libc::MAP_POPULATE;
            if libc::mmap(at as *mut c_void, len, protection, flags, -1, 0) as u64 != at {
                libc::_exit(2);
            }
        };
        let writable = libc::PROT_READ | libc::PROT_WRITE;
        map(CODE, PAGE, writable | libc::PROT_EXEC);
        map(DATA, DATA_LEN, writable);
        map(READ_ONLY, PAGE, writable);
        std::ptr::copy_nonoverlapping(background[DATA_LEN..].as_ptr(), READ_ONLY as *mut u8, PAGE);
        libc::mprotect(READ_ONLY as *mut c_void, PAGE, libc::PROT_READ);
        catch_faults();
        libc::syscall(libc::SYS_arch_prctl, ARCH_SET_GS, GS_BASE);
        // 64-bit code does not care; 32-bit code needs them.
        std::arch::asm!("mov ds, {0:e}", "mov es, {0:e}", in(reg) DATA_32 as u32, options(nostack));
        HAS_AVX = std::is_x86_feature_detected!("avx") as u8;
        for index in 0..count {
            shared.at.store(index as u32, Ordering::SeqCst);
            run_case(&shared.cases[index], &mut shared.endings[index], background);
        }
        shared.at.store(count as u32, Ordering::SeqCst);
        libc::_exit(0)
    }
}

/// # Safety
/// In the child, with the memory mapped.
unsafe fn run_case(case: &Case, ending: &mut Ending, background: &[u8]) {
    // SAFETY: the mappings are there and this is the only thread.
    unsafe {
        let data = DATA as *mut u8;
        std::ptr::copy_nonoverlapping(background.as_ptr(), data, DATA_LEN);
        let window = data.add(case.window_at as usize);
        std::ptr::copy_nonoverlapping(case.window.as_ptr(), window, case.window.len());
        place_code(case);
        let selector = if case.bits == Bits::B64 { CODE_64 } else { CODE_32 };
        TARGET = Far { offset: case.state.rip as u32, selector };
        STATE = case.state;
        TRAP = None;
        difftest_enter();
        ending.state = STATE;
        let trap = (&raw const TRAP).read();
        if trap.is_none() {
            ending.state.rip = case.end();
        }
        let trap = trap.filter(|trap| case.until == Until::End || !is_landing(trap, &mut ending.state));
        ending.trapped = trap.is_some();
        if let Some(trap) = trap {
            ending.trap = trap;
        }
        std::ptr::copy_nonoverlapping(data, ending.data.as_mut_ptr(), DATA_LEN);
    }
}

/// Whether a trap means that a branch has arrived somewhere: at a breakpoint, or where there is no code.
/// Puts the instruction pointer there.
fn is_landing(trap: &Trap, state: &mut State) -> bool {
    match trap.vector {
        3 => state.rip -= 1,
        14 if trap.address == state.rip => {}
        _ => return false,
    }
    true
}

/// Puts the code of a case in its page, and after it the way back: a jump, or breakpoints everywhere.
///
/// # Safety
/// In the child, with the memory mapped.
unsafe fn place_code(case: &Case) {
    let mut page = [0xcc; PAGE];
    let at = (case.state.rip - CODE) as usize;
    let len = case.code_len as usize;
    page[at..at + len].copy_from_slice(&case.code[..len]);
    if case.until == Until::End {
        let back = (difftest_leave as *const () as u64).to_le_bytes();
        // jmp [rip + gap]; the address follows, aligned, for accesses may be checked.
        let jump = |page: &mut [u8; PAGE], at: usize| {
            let address = (at + 6).next_multiple_of(8);
            page[at..at + 6].copy_from_slice(&[0xff, 0x25, (address - at - 6) as u8, 0, 0, 0]);
            page[address..address + 8].copy_from_slice(&back);
        };
        match case.bits {
            Bits::B64 => jump(&mut page, at + len),
            Bits::B32 => {
                // jmp far CODE_64:WAY_BACK
                page[at + len] = 0xea;
                page[at + len + 1..at + len + 5].copy_from_slice(&(WAY_BACK as u32).to_le_bytes());
                page[at + len + 5..at + len + 7].copy_from_slice(&CODE_64.to_le_bytes());
                jump(&mut page, (WAY_BACK - CODE) as usize);
            }
        }
    }
    // SAFETY: the page is mapped and writable, and this is the only thread.
    unsafe { std::ptr::copy_nonoverlapping(page.as_ptr(), CODE as *mut u8, PAGE) };
}

/// # Safety
/// In the child.
unsafe fn catch_faults() {
    static mut STACK: [u8; 64 << 10] = [0; 64 << 10];
    // SAFETY: valid structures; the stack is used by this thread's handlers only.
    unsafe {
        let stack = libc::stack_t { ss_sp: (&raw mut STACK).cast(), ss_flags: 0, ss_size: 64 << 10 };
        libc::sigaltstack(&stack, std::ptr::null_mut());
        let mut action: libc::sigaction = std::mem::zeroed();
        action.sa_sigaction = on_fault as *const () as usize;
        action.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK | libc::SA_NODEFER;
        for signal in [libc::SIGSEGV, libc::SIGBUS, libc::SIGFPE, libc::SIGILL, libc::SIGTRAP] {
            libc::sigaction(signal, &action, std::ptr::null_mut());
        }
    }
}

extern "C" fn on_fault(_signal: i32, _info: *mut libc::siginfo_t, context: *mut c_void) {
    // SAFETY: the kernel passes a valid context; the statics belong to this thread. It leaves AC as the
    // case had it, of which Rust code knows nothing.
    unsafe {
        std::arch::asm!("push 2", "popfq");
        let registers = &mut (*context.cast::<libc::ucontext_t>()).uc_mcontext.gregs;
        let rip = registers[libc::REG_RIP as usize] as u64;
        let selector = registers[libc::REG_CSGSFS as usize] as u16;
        let ours = difftest_enter as *const () as u64;
        if (ours..ours + 0x1000).contains(&rip) {
            // A bug of this program, not of the case.
            libc::_exit(3);
        }
        let vector = registers[libc::REG_TRAPNO as usize] as u32;
        TRAP = Some(Trap {
            vector,
            code: registers[libc::REG_ERR as usize] as u32,
            address: if vector == 14 { registers[libc::REG_CR2 as usize] as u64 } else { 0 },
        });
        (&raw mut STATE.rip).write(rip);
        registers[libc::REG_RIP as usize] = difftest_leave as *const () as i64;
        registers[libc::REG_CSGSFS as usize] += CODE_64 as i64 - selector as i64;
    }
}
