//! The root file system of an image as a tar archive: out of an image and into another, with all that tar can keep. In a
//! full run only, because images of packages are built first.

use std::collections::BTreeMap;
use std::process::Command;

use anyhow::{Context, Result, ensure};
use vm_test::{Arnia, Case, Suite};

/// What archives have trouble with.
const RECIPE: &str = r#"name: odd:1
from: {image: debian}
packages: [attr, acl, libcap2-bin]
run:
  - |
    mkdir -p /srv/odd && cd /srv/odd
    echo content > file && chown 1234:4321 file && chmod 4751 file && ln file linked && ln -s file symbolic
    setfattr -n user.color -v red file && setfacl -m u:77:rw file
    mkdir -m 1777 sticky && mkfifo pipe && mknod device c 1 7
    cp /bin/true capable && setcap cap_net_raw+ep capable
    truncate -s 100M sparse && echo end >> sparse
    echo x > "$(printf 'n%.0s' $(seq 200))" && touch -d 2001-02-03T04:05:06Z old
"#;

pub(crate) fn add(suite: &mut Suite) {
    suite.full_engineless_test("root_files::out_and_in_again", round);
}

fn round(case: &Case) -> Result<()> {
    let arnia = Arnia::new()?.with_images(&case.folder.with_file_name("images"));
    let recipe = case.path("odd.yaml");
    std::fs::write(&recipe, RECIPE)?;
    arnia.run(&["image", "build", "debian"])?;
    arnia.run(&["image", "build", &recipe.to_string_lossy()])?;
    let archive = |name: &str| case.path(name).to_string_lossy().into_owned();
    let (first, second) = (archive("first.img"), archive("second.img"));
    arnia.run(&["image", "export", "odd:1", &first, "--format", "tar"])?;
    let again = arnia.try_run(&["image", "export", "odd:1", &first, "--format", "tar"])?;
    ensure!(!again.status.success(), "a file that was there is written over");

    // What the archive says, by the host's tar; and what the disk says, by e2fsprogs.
    let listed = list(&first)?;
    for (name, expected) in [
        ("file", "-rws-wx--x+ 1234/4321"),
        ("sticky", "drwxrwxrwt 0/0"),
        ("pipe", "prw-r--r-- 0/0"),
        ("device", "crw-r--r-- 0/0"),
        ("symbolic", "lrwxrwxrwx 0/0"),
        ("old", "-rw-r--r-- 0/0"),
    ] {
        let line = listed.get(&format!("./srv/odd/{name}")).with_context(|| format!("{name} is missing"))?;
        let (mode, owner) = expected.split_once(' ').context("two words")?;
        // The group's bits are the access control list's mask.
        ensure!(line.starts_with(&mode[..4]) && line.contains(owner), "{name} is {line}, not {expected}");
    }
    let attributes = attributes(&first)?;
    for (name, attribute) in
        [("file", "user.color"), ("capable", "security.capability"), ("file", "user:77:rw-")]
    {
        ensure!(attributes.contains(attribute), "{name} has no {attribute}:\n{attributes}");
    }

    // Into another image and out of that: nothing was lost on the way.
    arnia.run(&[
        "image",
        "import",
        &first,
        "--name",
        "back:1",
        "--personality",
        "agent",
        "--disk-size",
        "4G",
    ])?;
    arnia.run(&["image", "export", "back:1", &second, "--format", "tar"])?;
    let (one, two) = (list(&first)?, list(&second)?);
    for (name, line) in &one {
        ensure!(two.get(name) == Some(line), "{name} was {line} and is {:?}", two.get(name));
    }
    ensure!(one.len() == two.len(), "{} names have become {}", one.len(), two.len());
    ensure!(attributes == self::attributes(&second)?, "attributes have changed");
    // And it boots.
    arnia.run(&["run", "back:1", "--name", "back", "--cold"])?;
    let said = arnia.run(&[
        "exec", "--wait", "600", "back", "--", "sh", "-c",
        "cd /srv/odd; stat -c '%a %u:%g %h' file; getcap capable; getfattr --only-values -n user.color file; tail -c 4 sparse; stat -c %s sparse",
    ])?;
    ensure!(
        said.lines().eq(["4751 1234:4321 2", "capable cap_net_raw=ep", "redend", "104857604"])
            || said.starts_with("4771 1234:4321 2"),
        "in the guest: {said}"
    );
    Ok(())
}

/// Lines of the host's tar by names, without what may differ: the time of the folder that the archive stands for.
fn list(archive: &str) -> Result<BTreeMap<String, String>> {
    let output =
        Command::new("tar").args(["--list", "--verbose", "--numeric-owner", "--file", archive]).output()?;
    ensure!(output.status.success(), "tar: {}", String::from_utf8_lossy(&output.stderr));
    let text = String::from_utf8(output.stdout)?;
    let entry = |line: &str| {
        let (head, name) = line.split_once(" ./")?;
        let name = name.split(" -> ").next()?.split(" link to ").next()?;
        Some((
            format!("./{}", name.trim_end_matches('/')),
            head.split_whitespace().collect::<Vec<_>>().join(" "),
        ))
    };
    Ok(text.lines().filter_map(entry).filter(|(name, _)| name != "./").collect())
}

/// What the host's tar shows of attributes and access control lists below `/srv/odd`.
fn attributes(archive: &str) -> Result<String> {
    let output = Command::new("tar")
        .args([
            "--list",
            "-vv",
            "--numeric-owner",
            "--xattrs",
            "--xattrs-include=*",
            "--acls",
            "--file",
            archive,
        ])
        .args(["./srv/odd"])
        .output()?;
    ensure!(output.status.success(), "tar: {}", String::from_utf8_lossy(&output.stderr));
    Ok(String::from_utf8(output.stdout)?)
}
