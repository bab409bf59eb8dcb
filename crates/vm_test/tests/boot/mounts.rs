//! Folders of the host in guests: `arnia mount`.

use std::fs;
use std::os::unix::fs::{MetadataExt, symlink};
use std::path::PathBuf;
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use vm_test::{Arnia, Case, HttpServer, Patience, Suite, sha256_hex};

use crate::inside::start;

pub(crate) fn add(suite: &mut Suite) {
    suite.engineless_test("mounts::a_folder_of_the_host_in_a_guest", share);
    suite.engineless_test("mounts::after_snapshots_and_in_clones", copies);
}

/// A folder of the host, with a secret beside it.
struct Folder {
    top: PathBuf,
}

impl Folder {
    fn new(case: &Case) -> Result<Folder> {
        let top = case.path("mount");
        fs::create_dir_all(top.join("src/deep/er"))?;
        fs::write(top.join("secret"), "not for guests")?;
        symlink("../secret", top.join("src/out"))?;
        symlink(top.join("secret"), top.join("src/absolute"))?;
        symlink("deep/er", top.join("src/in"))?;
        fs::write(top.join("src/deep/er/file"), "from the host\n")?;
        Ok(Folder { top })
    }

    fn path(&self, name: &str) -> PathBuf {
        self.top.join("src").join(name)
    }

    fn text(&self) -> String {
        self.top.join("src").to_string_lossy().into_owned()
    }
}

/// Runs a line in a guest.
fn sh(arnia: &Arnia, name: &str, line: &str) -> Result<String> {
    let patience = Patience::Boot.seconds_to_wait().to_string();
    arnia.run(&["exec", "--wait", &patience, name, "--", "sh", "-ec", line])
}

/// What a command that must fail says.
fn refused(arnia: &Arnia, arguments: &[&str]) -> Result<String> {
    let output = arnia.try_run(arguments)?;
    ensure!(!output.status.success(), "arnia {} succeeded", arguments.join(" "));
    Ok(String::from_utf8_lossy(&output.stderr).into_owned())
}

fn wait_mounted(arnia: &Arnia, name: &str, count: usize) -> Result<()> {
    let all = || {
        let mounts = arnia.json(&["mount", "ls", name])?;
        let mounts = mounts.as_array().cloned().unwrap_or_default();
        Ok(mounts.len() == count && mounts.iter().all(|mount| mount["state"] == "mounted"))
    };
    arnia.wait(Patience::Boot, all).with_context(|| arnia.run(&["mount", "ls", name]).unwrap_or_default())
}

/// Reads, writes, renames and lists; nothing leads out of the folder; read-only is read-only; all of it outlives the
/// daemon, a killed file server, and a restart of the machine.
fn share(case: &Case) -> Result<()> {
    let (arnia, folder) = (Arnia::new()?, Folder::new(case)?);
    start(case, &arnia, "web", &[])?;
    sh(&arnia, "web", "true")?;
    arnia.run(&["mount", &folder.text(), "web:/mnt/src"])?;
    wait_mounted(&arnia, "web", 1)?;

    ensure!(sh(&arnia, "web", "cat /mnt/src/deep/er/file /mnt/src/in/file")? == "from the host\n".repeat(2));
    sh(
        &arnia,
        "web",
        "echo by the guest > /mnt/src/new; mkdir /mnt/src/made; mv /mnt/src/new /mnt/src/made/named",
    )?;
    ensure!(fs::read_to_string(folder.path("made/named"))? == "by the guest\n");
    ensure!(!folder.path("new").exists());
    let host_uid = fs::metadata(folder.path("made/named"))?.uid();
    ensure!(host_uid == rustix::process::geteuid().as_raw(), "it belongs to the daemon's user");
    ensure!(sh(&arnia, "web", "stat -c %u:%g /mnt/src/made/named")? == "0:0\n");
    let names = sh(&arnia, "web", "cd /mnt/src && find . | sort")?;
    let expected = [
        ".",
        "./absolute",
        "./deep",
        "./deep/er",
        "./deep/er/file",
        "./in",
        "./made",
        "./made/named",
        "./out",
    ];
    ensure!(names.lines().eq(expected), "{names}");
    // What the host changes, the guest sees.
    fs::write(folder.path("deep/er/file"), "changed on the host\n")?;
    let seen = || Ok(sh(&arnia, "web", "cat /mnt/src/deep/er/file")? == "changed on the host\n");
    arnia.wait(Patience::Command, seen)?;

    // Large files, both ways.
    let bytes = HttpServer::bytes(20_000_003);
    fs::write(folder.path("large"), &bytes)?;
    let sum = sh(&arnia, "web", "sha256sum < /mnt/src/large; cp /mnt/src/large /mnt/src/copy; sync")?;
    ensure!(sum.starts_with(&sha256_hex(&bytes)), "the guest reads something else");
    ensure!(
        sha256_hex(&fs::read(folder.path("copy"))?) == sha256_hex(&bytes),
        "the guest wrote something else"
    );
    let many = "cd /mnt/src && mkdir many && for n in $(seq 300); do echo $n > many/file$n; done; ls many | wc -l; \
                cat many/* | sort -n | tail -n 1; rm -r many";
    ensure!(sh(&arnia, "web", many)? == "300\n300\n");

    // Links that lead out are the guest's own affair: it finds its own files there, or none.
    ensure!(sh(&arnia, "web", "cat /mnt/src/out 2>&1 || true")?.contains("No such file"));
    ensure!(sh(&arnia, "web", "cat /mnt/src/absolute 2>&1 || true")?.contains("No such file"));
    sh(
        &arnia,
        "web",
        "! ls /mnt/src/../../etc/../mnt/src/../secret; ln -s /etc /mnt/src/etc; ls /mnt/src/etc/ | grep -q modules",
    )?;

    // Read-only, by the guest's mount and, where that is gone round, by the server.
    let refuse = refused(&arnia, &["mount", &folder.text(), "web:/mnt/src", "--read-only"])?;
    ensure!(refuse.contains("has a folder at /mnt/src already"), "{refuse}");
    arnia.run(&["mount", &folder.text(), "web:/mnt/safe", "--read-only"])?;
    wait_mounted(&arnia, "web", 2)?;
    let attempts = "for path in /mnt/safe /tmp/all/mnt-safe; do for try in \"touch $path/x\" \"rm $path/made/named\" \
                    \"mkdir $path/d\" \"mv $path/made $path/m\" \"chmod 777 $path/made\"; do \
                    $try 2>&1 && echo DONE; done; done; cat /tmp/all/mnt-safe/made/named";
    let tried = sh(
        &arnia,
        "web",
        &format!("mkdir /tmp/all; mount -t virtiofs arnia /tmp/all; {attempts}; umount /tmp/all"),
    )?;
    ensure!(tried.matches("Read-only file system").count() == 10 && !tried.contains("DONE"), "{tried}");
    ensure!(tried.ends_with("by the guest\n"), "{tried}");

    // Refusals.
    for (arguments, words) in [
        (&["mount", "/no/such/folder", "web:/mnt/x"][..], "cannot be used"),
        (&["mount", "/proc", "web:/mnt/x"], "the kernel's own settings"),
        (&["mount", &arnia.home().join("data").to_string_lossy(), "web:/mnt/x"], "belongs to this program"),
        (&["mount", &folder.text(), "web:/"], "no place for a folder"),
        (&["mount", &folder.text(), "web"], "NAME:/PATH"),
        (&["umount", "web:/mnt/x"], "nothing mounted"),
    ] {
        let said = refused(&arnia, arguments)?;
        ensure!(said.contains(words), "{arguments:?}: {said}");
    }

    // In use, it stays; by force it goes.
    sh(
        &arnia,
        "web",
        "(cd /mnt/safe && echo > /tmp/in && exec sleep 1000) >/dev/null 2>&1 </dev/null & until [ -e /tmp/in ]; do :; done",
    )?;
    let busy = refused(&arnia, &["umount", "web:/mnt/safe"])?;
    ensure!(busy.contains("in use") && busy.contains("--force"), "{busy}");
    arnia.run(&["umount", "--force", "web:/mnt/safe"])?;
    ensure!(sh(&arnia, "web", "ls /mnt/safe")?.is_empty());

    // Without the daemon, and with another server.
    arnia.kill_daemon()?;
    ensure!(sh(&arnia, "web", "cat /mnt/src/made/named")? == "by the guest\n");
    kill_servers(&arnia)?;
    let started = Instant::now();
    while sh(&arnia, "web", "cat /mnt/src/made/named").ok().as_deref() != Some("by the guest\n") {
        ensure!(started.elapsed() < Patience::Command.limit(), "no other server comes");
    }

    arnia.run(&["stop", "--force", "web"])?;
    ensure!(arnia.json(&["mount", "ls", "web"])?[0]["state"] == "off");
    arnia.run(&["start", "web"])?;
    wait_mounted(&arnia, "web", 1)?;
    ensure!(sh(&arnia, "web", "cat /mnt/src/made/named")? == "by the guest\n");
    arnia.run(&["umount", "web:/mnt/src"])?;
    ensure!(sh(&arnia, "web", "ls /mnt/src")?.is_empty());
    ensure!(arnia.json(&["mount", "ls", "web"])?.as_array().is_some_and(Vec::is_empty));
    let exported = arnia.run(&["export", "web"])?;
    ensure!(!exported.contains("mounts"), "{exported}");
    Ok(())
}

/// Kills the file servers of this daemon.
fn kill_servers(arnia: &Arnia) -> Result<()> {
    let killed = arnia.kill_helpers("file-server")?;
    ensure!(killed == 1, "{killed} file servers");
    Ok(())
}

/// A machine that goes on from a snapshot finds its folder again; a clone has none.
fn copies(case: &Case) -> Result<()> {
    let (arnia, folder) = (Arnia::new()?, Folder::new(case)?);
    arnia.import_tiny(&case.artifacts)?;
    arnia.run(&["create", Arnia::TINY, "--name", "web", "--memory", "256M"])?;
    arnia.run(&["mount", &folder.text(), "web:/mnt/src", "--owner", "1000:100"])?;
    arnia.run(&["start", "web"])?;
    wait_mounted(&arnia, "web", 1)?;
    ensure!(sh(&arnia, "web", "stat -c %u:%g /mnt/src/deep")? == "1000:100\n");
    // An open file, and a program that stands in a folder.
    sh(
        &arnia,
        "web",
        "(cd /mnt/src/deep && exec 3< er/file && sleep 1000) >/dev/null 2>&1 </dev/null & cat /mnt/src/in/file",
    )?;
    arnia.run(&["snapshot", "create", "web", "before"])?;
    ensure!(sh(&arnia, "web", "cat /mnt/src/in/file")? == "from the host\n");
    fs::write(folder.path("later"), "later\n")?;
    arnia.run(&["snapshot", "restore", "web", "before"])?;
    wait_mounted(&arnia, "web", 1)?;
    ensure!(sh(&arnia, "web", "cat /mnt/src/in/file /mnt/src/later")? == "from the host\nlater\n");
    sh(&arnia, "web", "echo more > /mnt/src/more")?;
    ensure!(fs::read_to_string(folder.path("more"))? == "more\n");

    arnia.run(&["suspend", "web"])?;
    arnia.run(&["resume", "web"])?;
    wait_mounted(&arnia, "web", 1)?;
    ensure!(sh(&arnia, "web", "cat /mnt/src/more")? == "more\n");

    arnia.run(&["clone", "web", "other"])?;
    // It may not have noticed yet that it is another machine.
    ensure!(arnia.json(&["mount", "ls", "other"])?.as_array().is_some_and(Vec::is_empty));
    arnia.run(&["mount", &folder.text(), "other:/mnt/src", "--read-only"])?;
    wait_mounted(&arnia, "other", 1)?;
    let fresh = || Ok(sh(&arnia, "other", "grep -c ' /mnt/src .* virtiofs ' /proc/self/mountinfo")? == "1\n");
    arnia.wait(Patience::Boot, fresh)?;
    ensure!(sh(&arnia, "other", "cat /mnt/src/more; ! touch /mnt/src/x 2>/dev/null")? == "more\n");
    ensure!(sh(&arnia, "web", "cat /mnt/src/more")? == "more\n");
    Ok(())
}
