//! Commands and registers of the PS/2 keyboard controller (IBM Personal System/2 Hardware Interface
//! Technical Reference, "Keyboard and Auxiliary Device Controller").

/// Data port.
pub const PORT_DATA: u16 = 0x60;
/// Command port (write) and status port (read).
pub const PORT_COMMAND: u16 = 0x64;
/// System control port A: fast A20 and fast reset.
pub const PORT_SYSTEM_A: u16 = 0x92;
/// ISA interrupt of the keyboard port.
pub const IRQ_KEYBOARD: u32 = 1;
/// ISA interrupt of the auxiliary (mouse) port.
pub const IRQ_AUX: u32 = 12;

/// Status: the data port has something to read.
pub const STATUS_OUTPUT_FULL: u8 = 1 << 0;
/// Status: the system flag of the configuration byte.
pub const STATUS_SYSTEM: u8 = 1 << 2;
/// Status: the last write went to the command port.
pub const STATUS_COMMAND: u8 = 1 << 3;
/// Status: the keyboard is not locked.
pub const STATUS_UNLOCKED: u8 = 1 << 4;
/// Status: what is to be read comes from the auxiliary port.
pub const STATUS_AUX: u8 = 1 << 5;
/// Status: the device did not answer.
pub const STATUS_TIMEOUT: u8 = 1 << 6;

/// Configuration: interrupt when the keyboard port has something.
pub const CONFIG_KEYBOARD_IRQ: u8 = 1 << 0;
/// Configuration: interrupt when the auxiliary port has something.
pub const CONFIG_AUX_IRQ: u8 = 1 << 1;
/// Configuration: the self-test has passed.
pub const CONFIG_SYSTEM: u8 = 1 << 2;
/// Configuration: the keyboard's clock is off.
pub const CONFIG_KEYBOARD_OFF: u8 = 1 << 4;
/// Configuration: the auxiliary port's clock is off.
pub const CONFIG_AUX_OFF: u8 = 1 << 5;
/// Configuration: translate scan codes to set 1.
pub const CONFIG_TRANSLATE: u8 = 1 << 6;

/// Read the controller's memory, byte 0 (configuration) to 31.
pub const CMD_READ_RAM: u8 = 0x20;
/// Write the controller's memory.
pub const CMD_WRITE_RAM: u8 = 0x60;
/// Switch the auxiliary port off.
pub const CMD_AUX_OFF: u8 = 0xa7;
/// Switch the auxiliary port on.
pub const CMD_AUX_ON: u8 = 0xa8;
/// Test the auxiliary port's lines.
pub const CMD_AUX_TEST: u8 = 0xa9;
/// Test the controller.
pub const CMD_SELF_TEST: u8 = 0xaa;
/// Test the keyboard port's lines.
pub const CMD_KEYBOARD_TEST: u8 = 0xab;
/// Switch the keyboard port off.
pub const CMD_KEYBOARD_OFF: u8 = 0xad;
/// Switch the keyboard port on.
pub const CMD_KEYBOARD_ON: u8 = 0xae;
/// Read the input port.
pub const CMD_READ_INPUT: u8 = 0xc0;
/// Read the output port.
pub const CMD_READ_OUTPUT: u8 = 0xd0;
/// Write the output port.
pub const CMD_WRITE_OUTPUT: u8 = 0xd1;
/// Give a byte back as if from the keyboard.
pub const CMD_LOOP_KEYBOARD: u8 = 0xd2;
/// Give a byte back as if from the auxiliary device.
pub const CMD_LOOP_AUX: u8 = 0xd3;
/// Send a byte to the auxiliary device.
pub const CMD_WRITE_AUX: u8 = 0xd4;
/// Pulse the output port lines whose bits are clear; line 0 is reset.
pub const CMD_PULSE: u8 = 0xf0;

/// The answer to a good self-test.
pub const SELF_TEST_PASSED: u8 = 0x55;
/// The answer to a good line test.
pub const LINES_GOOD: u8 = 0x00;
/// The answer to a line test where nothing is connected: the clock line is stuck low.
pub const LINES_DEAD: u8 = 0x01;
/// What is read when a device does not answer ("resend").
pub const NO_ANSWER: u8 = 0xfe;

/// Output port: reset line, active low.
pub const OUTPUT_NO_RESET: u8 = 1 << 0;
/// Output port: A20.
pub const OUTPUT_A20: u8 = 1 << 1;

/// System control port A: reset.
pub const SYSTEM_A_RESET: u8 = 1 << 0;
/// System control port A: A20.
pub const SYSTEM_A_A20: u8 = 1 << 1;

/// Keyboard: set the lights.
pub const KEYBOARD_SET_LEDS: u8 = 0xed;
/// Keyboard: send the same back.
pub const KEYBOARD_ECHO: u8 = 0xee;
/// Keyboard: choose or tell the set of scan codes.
pub const KEYBOARD_SET: u8 = 0xf0;
/// Keyboard: tell what you are.
pub const KEYBOARD_IDENTIFY: u8 = 0xf2;
/// Keyboard: set rate and delay of repetition.
pub const KEYBOARD_TYPEMATIC: u8 = 0xf3;
/// Keyboard: begin to send keys.
pub const KEYBOARD_ENABLE: u8 = 0xf4;
/// Keyboard: send no keys.
pub const KEYBOARD_DISABLE: u8 = 0xf5;
/// Keyboard: take the default settings.
pub const KEYBOARD_DEFAULTS: u8 = 0xf6;
/// Keyboard: send the last byte again; from the keyboard: that was not understood.
pub const KEYBOARD_RESEND: u8 = 0xfe;
/// Keyboard: start anew.
pub const KEYBOARD_RESET: u8 = 0xff;
/// From the keyboard: understood.
pub const KEYBOARD_ACK: u8 = 0xfa;
/// From the keyboard: the self-test has passed.
pub const KEYBOARD_TEST_PASSED: u8 = 0xaa;
/// What the keyboard is.
pub const KEYBOARD_ID: [u8; 2] = [0xab, 0x83];
/// 10.9 characters a second after half a second.
pub const TYPEMATIC_DEFAULT: u8 = 0x2b;
