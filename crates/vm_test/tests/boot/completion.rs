//! Names that the tabulator key completes, in the shells themselves where they are installed.

use std::process::Command;

use anyhow::{Result, ensure};
use vm_test::{Arnia, Case, Suite};

use crate::inside;

pub(crate) fn add(suite: &mut Suite) {
    suite.engineless_test("daemon::names_are_completed", names);
}

fn names(case: &Case) -> Result<()> {
    let arnia = Arnia::new()?;
    // Nothing is started by a key.
    ensure!(candidates(&arnia, "fish", &["start", ""])?.is_empty(), "names without a daemon");
    ensure!(arnia.kill_daemon().is_err(), "the key has started a daemon");

    inside::start(case, &arnia, "web", &[])?;
    let kernel = case.artifacts.kernel.image.to_string_lossy().into_owned();
    arnia.run(&["create", "--name", "worker", "--kernel", &kernel])?;
    arnia.run(&["snapshot", "create", "web", "before"])?;
    arnia.run(&["network", "create", "lan"])?;
    arnia.run(&["volume", "create", "data", "1M"])?;
    arnia.run(&["project", "create", "lab"])?;
    arnia.run(&["create", "--project", "lab", "--name", "pupil", "--kernel", &kernel])?;
    arnia.import_tiny(&case.artifacts)?;

    for (words, expected) in [
        (&["start", ""][..], &["web", "worker"][..]),
        (&["stop", "web", "wo"], &["worker"]),
        (&["snapshot", "restore", "web", ""], &["before"]),
        (&["snapshot", "restore", "worker", ""], &[]),
        (&["clone", "web@"], &["web@before"]),
        (&["run", "ti"], &[Arnia::TINY]),
        (&["network", "rm", ""], &["lan", "user"]),
        (&["run", "--volume", ""], &["data"]),
        (&["--project", "lab", "rm", ""], &["pupil"]),
        (&["ls", "--project", "l"], &["lab"]),
        (&["cp", "./x", "w"], &["web:", "worker:"]),
        (&["context", "use", ""], &["local"]),
    ] {
        for shell in ["bash", "zsh", "fish"] {
            let found = candidates(&arnia, shell, words)?;
            let mut found: Vec<&str> = found.iter().map(String::as_str).collect();
            found.sort_unstable();
            let here = found.iter().filter(|name| expected.contains(*name)).count();
            let whole = here == expected.len() && found.len() == here;
            ensure!(whole, "{shell}: {words:?} is completed to {found:?}, not {expected:?}");
        }
    }
    // Commands are, as before.
    ensure!(candidates(&arnia, "bash", &["clo"])? == ["clone"], "a command");
    in_bash(&arnia)?;
    if Command::new("fish").arg("--version").output().is_ok() {
        let script = format!("{} completions fish | source; complete -C 'arnia start w'", arnia.program());
        let said = shell(&arnia, "fish", &["--no-config", "-c", &script])?;
        ensure!(said.lines().any(|line| line.starts_with("web")), "fish says {said:?}");
    }
    Ok(())
}

/// What the program answers in a shell's form.
fn candidates(arnia: &Arnia, shell: &str, words: &[&str]) -> Result<Vec<String>> {
    let line = [&["--", "arnia"], words].concat();
    let mut command = arnia.command(&line);
    command.env("ARNIA_COMPLETE", shell).env("_CLAP_COMPLETE_INDEX", words.len().to_string());
    let output = command.env("_CLAP_IFS", "\n").output()?;
    ensure!(output.status.success(), "{words:?}: {}", String::from_utf8_lossy(&output.stderr));
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    // Fish has an explanation behind a tabulator, zsh behind a colon; zsh writes colons of names with a backslash.
    let name = |line: &str| {
        let line = line.split('\t').next().unwrap_or_default().replace("\\:", "\0");
        let line = if shell == "zsh" { line.split(':').next().unwrap_or_default().to_owned() } else { line };
        line.replace('\0', ":")
    };
    // Options may come with them.
    Ok(text.lines().map(name).filter(|name| !name.is_empty() && !name.starts_with('-')).collect())
}

/// As bash does it when the key is pressed.
fn in_bash(arnia: &Arnia) -> Result<()> {
    let script = r#"source <(arnia completions bash)
complete -p arnia >/dev/null || exit
# As bash calls it: with the line, the word before the cursor and the one before that.
press() {
    COMP_LINE=$1 COMP_POINT=${#1} COMP_CWORD=$((${#COMP_WORDS[@]} - 1)) COMP_TYPE=9
    _clap_complete_arnia arnia "$2" "$3"
    printf '%s\n' "${COMPREPLY[@]}"
}
COMP_WORDS=(arnia start we)
press 'arnia start we' we start
COMP_WORDS=(arnia clone web @ be)
press 'arnia clone web@be' @be @"#;
    let said = shell(arnia, "bash", &["--norc", "-c", script])?;
    ensure!(said == "web\n@before\n", "bash says {said:?}");
    Ok(())
}

/// Runs a script of a shell that finds the program as users do.
fn shell(arnia: &Arnia, shell: &str, arguments: &[&str]) -> Result<String> {
    let program = arnia.program().into_owned();
    let folder = std::path::Path::new(&program).parent().map(|folder| folder.display().to_string());
    let path = format!("{}:{}", folder.unwrap_or_default(), std::env::var("PATH").unwrap_or_default());
    let output =
        Command::new(shell).args(arguments).env("PATH", path).env("ARNIA_HOME", arnia.home()).output()?;
    ensure!(output.status.success(), "{shell}: {}", String::from_utf8_lossy(&output.stderr));
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}
