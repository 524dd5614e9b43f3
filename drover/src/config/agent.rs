//! `agent.toml`: what an agent's own machine decides, in the agent's state directory.
//!
//! ```toml
//! servers = ["gateway.example:7443"]
//! capacity = 8
//!
//! [labels]
//! rack = "7"
//!
//! [exec.programs]
//! uname = "/usr/bin/uname"
//! ```
//!
//! Which programs may run is decided here and nowhere else: no server can add one.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use protocol::limits::{CAPACITY_MAX, LABEL_VALUE_BYTES_MAX, LABELS_MAX, NAME_BYTES_MAX};

use super::layer::{self, Key, Setting};
use super::{LogFormat, LogSettings, file, value};
use crate::fault::{Exit, Fault};

/// The file's name in the state directory.
pub(crate) const FILE: &str = "agent.toml";
const LABELS: &str = "labels.";
const PROGRAMS: &str = "exec.programs.";
/// The header that programs stand below.
const PROGRAMS_HEADER: &str = "[exec.programs]";
/// Programs on the allow-list.
const PROGRAMS_MAX: usize = 1024;

/// An agent's configuration.
#[derive(Clone, PartialEq, Debug)]
pub(crate) struct AgentFile {
    /// `host:port` of gateways, tried in order.
    pub(crate) servers: Vec<String>,
    /// Operations at once.
    pub(crate) capacity: u32,
    /// Told to the server, for people and selection.
    pub(crate) labels: BTreeMap<String, String>,
    /// What `exec` may run: a name, and the program's absolute path.
    pub(crate) programs: BTreeMap<String, PathBuf>,
    /// Whether the driver for load tests is there.
    pub(crate) simulated: bool,
    /// What is logged.
    pub(crate) log: LogSettings,
}

impl Default for AgentFile {
    fn default() -> Self {
        Self {
            servers: Vec::new(),
            capacity: 8,
            labels: BTreeMap::new(),
            programs: BTreeMap::new(),
            simulated: false,
            log: LogSettings {
                filter: "info".to_owned(),
                format: LogFormat::Human,
            },
        }
    }
}

/// The keys with fixed names; `labels.NAME` and `exec.programs.NAME` come on top.
static KEYS: [Key<AgentFile>; 5] = [
    Key {
        name: "servers",
        doc: "HOST:PORT list of gateways, tried in order.",
        set: |agent, text| value::addresses(text).map(|servers| agent.servers = servers),
        show: |agent| value::quote_list(&agent.servers),
    },
    Key {
        name: "capacity",
        doc: "Operations at once (1 to 16).",
        set: |agent, text| {
            value::number(text, 1, CAPACITY_MAX).map(|capacity| agent.capacity = capacity)
        },
        show: |agent| agent.capacity.to_string(),
    },
    Key {
        name: "simulated.enabled",
        doc: "Whether the driver `simulated`, for load tests, is there.",
        set: |agent, text| value::truth(text).map(|enabled| agent.simulated = enabled),
        show: |agent| agent.simulated.to_string(),
    },
    Key {
        name: "log.filter",
        doc: "What is logged: error, warn, info, debug, trace, or a filter such as info,agent=debug.",
        set: |agent, text| {
            crate::log::check(text)?;
            agent.log.filter = text.to_owned();
            Ok(())
        },
        show: |agent| value::quote(&agent.log.filter),
    },
    Key {
        name: "log.format",
        doc: "How log lines look on standard error: human or json.",
        set: |agent, text| LogFormat::parse(text).map(|format| agent.log.format = format),
        show: |agent| value::quote(agent.log.format.name()),
    },
];

/// Reads `agent.toml` in `state_dir`; without one everything has its default.
pub(crate) fn load(state_dir: &Path) -> Result<AgentFile, Fault> {
    let path = state_dir.join(FILE);
    if !path.exists() {
        return Ok(AgentFile::default());
    }
    parse(&path.display().to_string(), &file::read(&path)?)
}

fn parse(name: &str, text: &str) -> Result<AgentFile, Fault> {
    let mut agent = AgentFile::default();
    let mut names: Vec<&str> = KEYS.iter().map(|key| key.name).collect();
    names.extend(["labels.NAME", "exec.programs.NAME"]);
    for entry in file::parse(name, text)? {
        // Sections whose keys are names of the reader's own may be empty.
        let own = ["labels", "exec.programs"].contains(&entry.key.as_str());
        if own && entry.value.is_none() {
            continue;
        }
        let setting = layer::from_entry(name, entry, &names)?;
        apply(&mut agent, &setting, &names)?;
    }
    Ok(agent)
}

fn apply(agent: &mut AgentFile, setting: &Setting, names: &[&str]) -> Result<(), Fault> {
    let invalid = |problem: String| layer::invalid(setting, &problem);
    if let Some(name) = setting.key.strip_prefix(LABELS) {
        let label = check_label(name, &setting.value).map_err(invalid)?;
        agent.labels.insert(name.to_owned(), label);
        if agent.labels.len() > LABELS_MAX {
            return Err(invalid(format!("at most {LABELS_MAX} labels")));
        }
        return Ok(());
    }
    if let Some(name) = setting.key.strip_prefix(PROGRAMS) {
        let path = check_program(name, &setting.value).map_err(invalid)?;
        agent.programs.insert(name.to_owned(), path);
        if agent.programs.len() > PROGRAMS_MAX {
            return Err(invalid(format!("at most {PROGRAMS_MAX} programs")));
        }
        return Ok(());
    }
    if KEYS.iter().any(|key| key.name == setting.key) {
        return layer::apply(agent, &KEYS, setting);
    }
    Err(layer::unknown(setting, names.iter().copied(), "docs/OPERATIONS.md lists every key of agent.toml"))
}

fn check_label(name: &str, text: &str) -> Result<String, String> {
    if name.is_empty() || name.len() > NAME_BYTES_MAX || text.len() > LABEL_VALUE_BYTES_MAX {
        return Err(format!(
            "a label's name has 1 to {NAME_BYTES_MAX} bytes, its value at most {LABEL_VALUE_BYTES_MAX}"
        ));
    }
    if name.chars().chain(text.chars()).any(char::is_control) {
        return Err("labels hold no control characters".to_owned());
    }
    Ok(text.to_owned())
}

/// A program may be added before it is installed; its path must be whole, so that nothing in the
/// environment decides what runs.
pub(crate) fn check_program(name: &str, path: &str) -> Result<PathBuf, String> {
    let valid = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
    if name.is_empty() || name.len() > NAME_BYTES_MAX || !name.chars().all(valid) {
        return Err("a program's name is made of letters, digits, dash, dot and underscore".to_owned());
    }
    let path = PathBuf::from(path);
    if !path.is_absolute() {
        return Err("expected the program's absolute path, such as /usr/bin/uname".to_owned());
    }
    Ok(path)
}

/// The text of a new file.
fn fresh(servers: &[String]) -> String {
    format!(
        "# What this machine's agent does and allows. Read at the start of `drover agent run`.\n\
         # Every key: docs/OPERATIONS.md\n\n\
         # HOST:PORT of gateways, tried in order.\n\
         servers = {}\n\n\
         # Operations at once (1 to {CAPACITY_MAX}).\n\
         capacity = {}\n\n\
         # Programs that `exec` may run. No server can add one.\n\
         {PROGRAMS_HEADER}\n",
        value::quote_list(servers),
        AgentFile::default().capacity,
    )
}

/// Puts a program on the allow-list of a file's text, and leaves everything else as it stands.
fn with_program(text: &str, name: &str, path: &Path) -> String {
    let line = format!("{} = {}\n", value::quote(name), value::quote(&path.to_string_lossy()));
    let mut out = String::with_capacity(text.len() + line.len());
    let mut added = false;
    for old in text.split_inclusive('\n') {
        out.push_str(old);
        if !added && old.trim() == PROGRAMS_HEADER {
            if !old.ends_with('\n') {
                out.push('\n');
            }
            out.push_str(&line);
            added = true;
        }
    }
    if !added {
        if !out.is_empty() && !out.ends_with('\n') {
            out.push('\n');
        }
        out.push_str(&format!("\n{PROGRAMS_HEADER}\n{line}"));
    }
    out
}

/// Makes `agent.toml` where there is none, and allows programs. Says which are new.
pub(crate) fn allow(
    state_dir: &Path,
    servers: &[String],
    programs: &[(String, PathBuf)],
) -> Result<Vec<String>, Fault> {
    let path = state_dir.join(FILE);
    let name = path.display().to_string();
    let (mut text, mut changed) = if path.exists() {
        (file::read(&path)?, false)
    } else {
        (fresh(servers), true)
    };
    let known = parse(&name, &text)?.programs;
    let mut added = Vec::new();
    for (program, target) in programs {
        match known.get(program) {
            Some(path) if path == target => {}
            Some(path) => {
                return Err(Fault::new(format_args!(
                    "{name} already allows `{program}` as {}",
                    path.display()
                ))
                .advise("choose another name, or change the line in the file"));
            }
            None => {
                text = with_program(&text, program, target);
                changed = true;
                added.push(program.clone());
            }
        }
    }
    // What is written can be read: a section written in an unusual way is found out here.
    let written = parse(&name, &text).map_err(|fault| {
        fault.advise("add the program to the section exec.programs by hand").exit(Exit::Failure)
    })?;
    debug_assert!(programs.iter().all(|(program, _)| written.programs.contains_key(program)));
    if changed {
        std::fs::write(&path, text).map_err(|error| Fault::io("write", &path, &error))?;
    }
    Ok(added)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_new_file_reads_back() {
        let directory = tempfile::tempdir().unwrap();
        let programs = [("uname".to_owned(), PathBuf::from("/usr/bin/uname"))];
        let added = allow(directory.path(), &["a:1".to_owned()], &programs).unwrap();
        assert_eq!(added, ["uname"]);
        let agent = load(directory.path()).unwrap();
        assert_eq!(agent.servers, ["a:1"]);
        assert_eq!(agent.programs["uname"], PathBuf::from("/usr/bin/uname"));
        assert_eq!(allow(directory.path(), &[], &programs).unwrap(), Vec::<String>::new());
    }

    #[test]
    fn allowing_a_program_leaves_the_rest_of_the_file_alone() {
        let before = "# mine\ncapacity = 3 # few\n\n[exec.programs]\na = '/a'\n\n[labels]\nrack = '7'\n";
        let after = with_program(before, "b", Path::new("/b"));
        assert_eq!(after.replace("\"b\" = \"/b\"\n", ""), before);
        let agent = parse("f", &after).unwrap();
        assert_eq!(agent.programs.len(), 2);
        assert_eq!((agent.capacity, agent.labels["rack"].as_str()), (3, "7"));
        let agent = parse("f", &with_program("capacity = 3", "b", Path::new("/b"))).unwrap();
        assert_eq!(agent.programs.len(), 1);
    }

    #[test]
    fn a_program_is_not_silently_replaced() {
        let directory = tempfile::tempdir().unwrap();
        let program = |path: &str| vec![("ls".to_owned(), PathBuf::from(path))];
        allow(directory.path(), &[], &program("/bin/ls")).unwrap();
        let fault = allow(directory.path(), &[], &program("/tmp/ls")).unwrap_err();
        assert!(fault.what.contains("/bin/ls"), "{fault:?}");
    }

    #[test]
    fn mistakes_in_an_agents_file_are_told_with_line_and_remedy() {
        for (text, what, advice) in [
            ("capacity = 17\n", "line 1: capacity = `17`", "1 to 16"),
            ("capcity = 3\n", "no key `capcity`", "did you mean `capacity`?"),
            ("[exec.programs]\nls = 'bin/ls'\n", "line 2: exec.programs.ls", "absolute path"),
            ("[exec.programs]\n'a b' = '/b'\n", "exec.programs.a b", "letters, digits"),
            ("[exec.program]\nls = '/ls'\n", "no key `exec.program.ls`", "exec.programs.NAME"),
            ("servers = ['a']\n", "servers = `a`", "HOST:PORT"),
            ("[simulated]\nenabled = 1\n", "simulated.enabled = `1`", "true or false"),
            ("[log]\nformat = 'x'\n", "log.format = `x`", "human or json"),
        ] {
            let fault = parse("agent.toml", text).expect_err(text);
            assert!(fault.what.contains(what), "{text:?} gave {fault:?}");
            let told = fault.advice.clone().unwrap_or_default();
            assert!(told.contains(advice), "{text:?} gave {fault:?}");
        }
    }

    #[test]
    fn labels_are_kept_within_the_protocols_limits() {
        assert!(parse("f", &format!("[labels]\na = '{}'\n", "x".repeat(257))).is_err());
        let many: String = (0..=LABELS_MAX).map(|n| format!("l{n} = 'x'\n")).collect();
        assert!(parse("f", &format!("[labels]\n{many}")).is_err());
    }
}
