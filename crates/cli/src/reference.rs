//! The reference of the command line: what `--help` says, a page for each command, in `docs/reference/cli`.

use clap::Command;
use std::collections::BTreeMap;

/// Pages by file name. The same on every computer: nothing of the environment is in them.
pub(crate) fn pages() -> BTreeMap<String, String> {
    let mut command = narrow(crate::command());
    command.build();
    let mut pages = BTreeMap::new();
    let mut index = String::from(
        "# The command line\n\nGenerated from the program by `cargo xtask docs`; `arnia COMMAND --help` says the same, and `arnia man` \
         writes manual pages.\n\n",
    );
    for sub in command.get_subcommands().filter(|sub| sub.get_name() != "help" && !sub.is_hide_set()) {
        let about = sub.get_about().map(ToString::to_string).unwrap_or_default();
        index.push_str(&format!("- [`arnia {0}`]({0}.md): {about}\n", sub.get_name()));
        let mut page = String::new();
        section(sub, "#", &mut page);
        pages.insert(format!("{}.md", sub.get_name()), page);
    }
    index.push_str(&format!("\n```text\n{}\n```\n", help(&command)));
    pages.insert("README.md".into(), index);
    pages
}

fn narrow(command: Command) -> Command {
    command.term_width(100).mut_subcommands(narrow)
}

fn section(command: &Command, heading: &str, page: &mut String) {
    let name = command.get_bin_name().unwrap_or_else(|| command.get_name());
    if !page.is_empty() {
        page.push('\n');
    }
    page.push_str(&format!("{heading} {name}\n\n```text\n{}\n```\n", help(command)));
    for sub in command.get_subcommands().filter(|sub| sub.get_name() != "help" && !sub.is_hide_set()) {
        section(sub, "##", page);
    }
}

fn help(command: &Command) -> String {
    let text = command.clone().render_long_help().to_string();
    let lines = text.trim_end().lines().map(str::trim_end);
    lines.collect::<Vec<_>>().join("\n")
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    #[test]
    fn the_committed_reference_is_current() {
        let folder = std::path::Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/reference/cli"));
        let pages = super::pages();
        if std::env::var_os("ARNIA_BLESS").is_some() {
            let _ = std::fs::remove_dir_all(folder);
            std::fs::create_dir_all(folder).unwrap();
            for (name, text) in &pages {
                std::fs::write(folder.join(name), text).unwrap();
            }
        }
        let there = std::fs::read_dir(folder).into_iter().flatten();
        let there =
            there.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect::<BTreeSet<_>>();
        assert_eq!(there, pages.keys().cloned().collect(), "run `cargo xtask docs`");
        for (name, text) in &pages {
            let committed = std::fs::read_to_string(folder.join(name)).unwrap();
            assert!(committed == *text, "docs/reference/cli/{name} is old: run `cargo xtask docs`");
        }
    }
}
