//! Scripts of busybox: an interpreter as a user starts it, program start included.

use std::io;
use std::process::{Command, Stdio};

use crate::integer::fnv;
use crate::measure::Job;
use crate::options::Options;

/// Counting: parsing, variables and arithmetic.
pub(crate) fn loop_row(options: &Options) -> io::Result<Job> {
    let script = "i=0; while [ $i -lt 4000 ]; do i=$((i + 1)); done; echo $i";
    Ok(job(options, 4000, &["sh", "-c", script]))
}

/// Cutting and comparing text.
pub(crate) fn text_row(options: &Options) -> io::Result<Job> {
    let script =
        "f() { case $1 in *.c) n=$((n + 1)); b=${1%.c} ;; *) b=${1#*/} ;; esac; t=${#b}$t; t=${t%?????}; }
        n=0 i=0 t=abcdefgh
        while [ $i -lt 1000 ]; do f src/file$i.c; f src/file$i.h; i=$((i + 1)); done; echo $n $b $t";
    Ok(job(options, 1000, &["sh", "-c", script]))
}

/// Shells in pipes.
pub(crate) fn fork_row(options: &Options) -> io::Result<Job> {
    let script = "i=0; while [ $i -lt 6 ]; do x=$(echo $i | cat); i=$((x + 1)); done; echo $i";
    // Each substitution is a process, and so is each side of its pipe.
    Ok(job(options, 18, &["sh", "-c", script]))
}

/// A language with floating point and tables.
pub(crate) fn awk_row(options: &Options) -> io::Result<Job> {
    let script =
        "BEGIN { for (i = 1; i <= 3000; i++) { s += 1 / (i * i); t[i % 97] = t[i % 97] substr(i, 1, 1) }
        for (k = 0; k < 97; k++) u = u length(t[k]) substr(t[k], 3, 2)
        printf \"%.9f %s\\n\", s, u }";
    Ok(job(options, 3000, &["awk", script]))
}

fn job(options: &Options, operations: u64, arguments: &[&str]) -> Job {
    let mut command = Command::new(&options.busybox);
    command.args(arguments).env_clear().env("PATH", "/bin").stdin(Stdio::null()).stderr(Stdio::inherit());
    Job::fallible(operations, move || {
        let output = command.output()?;
        if !output.status.success() || output.stdout.is_empty() {
            return Err(io::Error::other(format!("the script failed ({})", output.status)));
        }
        Ok(fnv(&output.stdout))
    })
}
