//! A shell on the guest's console, driven by script.

use anyhow::{Result, bail};

use crate::{Console, Patience};

/// What a command in the guest came to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Output {
    /// Its exit status.
    pub status: i32,
    /// What it printed, without the last line end.
    pub text: String,
}

/// A shell that runs one command after another.
#[derive(Debug)]
pub struct Shell<'a> {
    console: &'a mut Console,
    commands: u64,
}

impl<'a> Shell<'a> {
    /// Takes over a console on which a shell's prompt stands.
    ///
    /// The shell is replaced by one that is not interactive and loops over lines: no echo, no prompt,
    /// no line editing, no word about jobs, so that all that comes back is what commands print.
    ///
    /// # Errors
    /// If the shell does not answer.
    pub fn take_over(console: &'a mut Console) -> Result<Self> {
        // The mark is split so that the echo of this line is not taken for an answer.
        console.send(
            "exec sh -c 'stty -echo; echo ARNIA\"-\"READY; \
             while IFS= read -r line; do eval \"$line\"; status=$?; done'\n",
        )?;
        console.expect("ARNIA-READY\r\n", Patience::Command)?;
        Ok(Self { console, commands: 0 })
    }

    /// The shell of [`Shell::take_over`] on the console of a machine that has gone on from a snapshot, or
    /// after another [`Shell`] was dropped.
    pub fn resumed(console: &'a mut Console) -> Self {
        use std::sync::atomic::{AtomicU64, Ordering};
        // Marks of their own, so that no answer is taken for another's.
        static NEXT: AtomicU64 = AtomicU64::new(1);
        Self { console, commands: NEXT.fetch_add(1, Ordering::Relaxed) * 100_000 }
    }

    /// Runs a command line and waits for its end.
    ///
    /// # Errors
    /// If it does not end in time. A status other than 0 is no error here.
    pub fn run(&mut self, command: &str) -> Result<Output> {
        self.commands += 1;
        let mark = format!("ARNIA-STATUS-{}", self.commands);
        self.console.send(&format!("{command}\necho {mark} $status\n"))?;
        let text = self.console.expect(&format!("{mark} "), Patience::Command)?;
        let status = self.console.expect("\n", Patience::Command)?;
        Ok(Output { status: status.trim().parse()?, text: text.trim_end_matches('\n').to_owned() })
    }

    /// Runs a command that must succeed, and returns what it printed.
    ///
    /// # Errors
    /// If it fails or does not end in time.
    pub fn check(&mut self, command: &str) -> Result<String> {
        let output = self.run(command)?;
        if output.status != 0 {
            bail!("`{command}` failed in the guest (status {}):\n{}", output.status, output.text);
        }
        Ok(output.text)
    }

    /// Types a command and waits for nothing: it ends the machine, or runs on.
    ///
    /// # Errors
    /// If the program has ended.
    pub fn send(&mut self, command: &str) -> Result<()> {
        self.console.send(&format!("{command}\n"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::console::tests::program_on_console;

    #[test]
    fn commands_give_status_and_output() {
        // A pseudo terminal, as the guest's console is one.
        let (mut child, mut console) =
            program_on_console("script", &["--quiet", "--command", "PS1='$ ' sh", "/dev/null"]);
        let mut shell = Shell::take_over(&mut console).expect("the shell answers");
        assert_eq!(shell.check("echo one; echo two").expect("it runs"), "one\ntwo");
        assert_eq!(shell.run("(exit 3)").expect("it runs"), Output { status: 3, text: String::new() });
        assert_eq!(shell.check("x=5").expect("it runs"), "");
        assert_eq!(shell.check("echo $x").expect("the same shell"), "5");
        let error = shell.check("echo why; false").expect_err("it fails").to_string();
        assert!(error.contains("why"), "{error}");
        shell.send("exit").expect("it runs");
        child.0.wait().expect("the shell ends");
    }
}
