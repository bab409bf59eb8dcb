//! Users and groups, from `/etc/passwd` and `/etc/group`.
//!
//! The C library's own way would load its name service modules, which a static program cannot.

use std::path::PathBuf;

use crate::Root;

/// One user.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct User {
    pub(crate) name: String,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    pub(crate) home: PathBuf,
    pub(crate) shell: String,
}

impl User {
    /// Root, for a system without `/etc/passwd`.
    pub(crate) fn root() -> User {
        User { name: "root".into(), uid: 0, gid: 0, home: "/root".into(), shell: "/bin/sh".into() }
    }

    /// A user by name or number.
    pub(crate) fn find(root: &Root, wanted: &str) -> Option<User> {
        let text = root.text("/etc/passwd").unwrap_or_default();
        let mut users = text.lines().filter_map(parse);
        let found = users.find(|user| user.name == wanted || user.uid.to_string() == wanted);
        found.or_else(|| (wanted == "root" || wanted == "0").then(User::root))
    }

    /// All groups of this user.
    pub(crate) fn groups(&self, root: &Root) -> Vec<u32> {
        let text = root.text("/etc/group").unwrap_or_default();
        let mut groups = vec![self.gid];
        for line in text.lines() {
            let mut fields = line.split(':').skip(2);
            let (Some(gid), Some(members)) = (fields.next(), fields.next()) else { continue };
            if let Ok(gid) = gid.parse()
                && members.split(',').any(|member| member == self.name)
                && !groups.contains(&gid)
            {
                groups.push(gid);
            }
        }
        groups
    }
}

fn parse(line: &str) -> Option<User> {
    let fields: Vec<&str> = line.split(':').collect();
    let [name, _, uid, gid, _, home, shell] = fields.as_slice() else { return None };
    let shell = if shell.is_empty() { "/bin/sh" } else { shell };
    Some(User {
        name: (*name).to_owned(),
        uid: uid.parse().ok()?,
        gid: gid.parse().ok()?,
        home: home.into(),
        shell: shell.to_owned(),
    })
}

/// A group's number by name or number.
pub(crate) fn group(root: &Root, wanted: &str) -> Option<u32> {
    let text = root.text("/etc/group").unwrap_or_default();
    text.lines().find_map(|line| {
        let fields: Vec<&str> = line.split(':').collect();
        let gid = fields.get(2)?;
        if fields[0] == wanted || *gid == wanted { gid.parse().ok() } else { None }
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::root::tests::TestRoot;

    #[test]
    fn users_are_found_with_their_groups() {
        let test = TestRoot::new("users");
        test.write(
            "/etc/passwd",
            "broken\nroot:x:0:0:root:/root:/bin/bash\nann:x:1000:1001:Ann,,,:/home/ann:\n",
        );
        test.write("/etc/group", "root:x:0:\nsudo:x:27:bob,ann\nann:x:1001:\nodd\nx:y:z:ann\n");
        let ann = User::find(&test.0, "ann").expect("she is there");
        assert_eq!((ann.uid, ann.gid, ann.shell.as_str()), (1000, 1001, "/bin/sh"));
        assert_eq!(User::find(&test.0, "1000"), Some(ann.clone()));
        assert_eq!(ann.groups(&test.0), [1001, 27]);
        assert_eq!(User::find(&test.0, "bob"), None);
        assert_eq!(group(&test.0, "sudo"), Some(27));
        assert_eq!(group(&test.0, "wheel"), None);
    }

    #[test]
    fn root_is_always_there() {
        let test = TestRoot::new("nousers");
        assert_eq!(User::find(&test.0, "root"), Some(User::root()));
        assert_eq!(User::find(&test.0, "ann"), None);
    }
}
