//! Writes `agent.toml`: makes it when a machine joins, and adds programs to its allow-list. What the
//! keys mean is the agent's business ([`agent::config`]).

use std::path::{Path, PathBuf};

use agent::AgentConfig;
use agent::config::{FILE_NAME, Flags};
use protocol::limits::{CAPACITY_MAX, NAME_BYTES_MAX};

use crate::config::{file, value};
use crate::fault::{Exit, Fault};

/// The header that programs stand below.
const PROGRAMS_HEADER: &str = "[exec.programs]";

/// A program and the name by which processes call it.
pub(super) type Program = (String, PathBuf);

/// Reads `NAME=PATH`.
pub(super) fn parse_program(text: &str) -> Result<Program, String> {
    let (name, path) = text
        .split_once('=')
        .ok_or("expected NAME=PATH, such as uname=/usr/bin/uname")?;
    Ok((name.to_owned(), check_program(name, path)?))
}

/// A program may be added before it is installed; its path must be whole, so that nothing in the
/// environment decides what runs.
pub(super) fn check_program(name: &str, path: &str) -> Result<PathBuf, String> {
    let valid = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
    if name.is_empty() || name.len() > NAME_BYTES_MAX || !name.chars().all(valid) {
        return Err("a program's name is made of letters, digits, dash, dot and underscore".into());
    }
    let path = PathBuf::from(path);
    if !path.is_absolute() {
        return Err("expected the program's absolute path, such as /usr/bin/uname".into());
    }
    Ok(path)
}

/// Makes `agent.toml` where there is none, and allows programs in it. Everything else in an
/// existing file stays as it is.
pub(super) fn allow(
    state_dir: &Path,
    servers: &[String],
    hostname: Option<&str>,
    programs: &[Program],
) -> Result<(), Fault> {
    let path = state_dir.join(FILE_NAME);
    let before = if path.exists() {
        Some(file::read(&path)?)
    } else {
        None
    };
    let known = load(state_dir)?.programs;
    let mut text = before.clone().unwrap_or_else(|| fresh(servers, hostname));
    for (name, target) in programs {
        match known.get(name) {
            Some(program) if program.path == *target => {}
            Some(program) => {
                return Err(Fault::new(format_args!(
                    "{} already allows `{name}` as {}",
                    path.display(),
                    program.path.display()
                ))
                .advise("choose another name, or change the line in the file"));
            }
            None => text = with_program(&text, name, target),
        }
    }
    write(&path, &text)?;
    // A section written in an unusual way shows here; then the file is put back as it was.
    match (load(state_dir), before) {
        (Ok(_), _) => Ok(()),
        (Err(_), Some(before)) => {
            write(&path, &before)?;
            Err(
                Fault::new(format_args!("cannot add to {} by program", path.display()))
                    .advise("add the program to its section exec.programs by hand"),
            )
        }
        (Err(fault), None) => Err(fault),
    }
}

/// The agent's configuration as it stands in the file.
pub(super) fn load(state_dir: &Path) -> Result<AgentConfig, Fault> {
    load_with(state_dir, Flags::default())
}

/// The agent's configuration with flags over the file.
pub(super) fn load_with(state_dir: &Path, flags: Flags) -> Result<AgentConfig, Fault> {
    AgentConfig::load(state_dir, flags).map_err(|error| {
        Fault::new(error)
            .exit(Exit::Usage)
            .advise("docs/OPERATIONS.md lists every key of agent.toml")
    })
}

fn write(path: &Path, text: &str) -> Result<(), Fault> {
    std::fs::write(path, text).map_err(|error| Fault::io("write", path, &error))
}

/// The text of a new file.
fn fresh(servers: &[String], hostname: Option<&str>) -> String {
    let hostname = hostname.map_or_else(String::new, |name| {
        format!(
            "# The name that people see.\nhostname = {}\n\n",
            value::quote(name)
        )
    });
    format!(
        "# What this machine's agent does and allows. Read when `drover agent run` starts.\n\
         # Every key: docs/OPERATIONS.md\n\n\
         # HOST:PORT of gateways, tried in order.\n\
         servers = {}\n\n\
         {hostname}\
         # Operations at once (1 to {CAPACITY_MAX}).\n\
         capacity = 4\n\n\
         # Programs that `exec` may run. No server can add one.\n\
         {PROGRAMS_HEADER}\n",
        value::quote_list(servers),
    )
}

/// Puts a program on the allow-list of a file's text.
fn with_program(text: &str, name: &str, path: &Path) -> String {
    let line = format!(
        "{} = {{ path = {} }}\n",
        value::quote(name),
        value::quote(&path.to_string_lossy())
    );
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

#[cfg(test)]
mod tests {
    use super::*;

    fn program(name: &str, path: &str) -> Vec<Program> {
        vec![(name.to_owned(), PathBuf::from(path))]
    }

    #[test]
    fn a_program_to_allow_has_a_name_and_an_absolute_path() {
        let parsed = parse_program("uname=/usr/bin/uname").unwrap();
        assert_eq!(parsed, program("uname", "/usr/bin/uname")[0]);
        for text in ["uname", "=/usr/bin/uname", "uname=uname", "a b=/x"] {
            assert!(parse_program(text).is_err(), "{text}");
        }
    }

    #[test]
    fn a_new_file_reads_back_and_a_repetition_changes_nothing() {
        let directory = tempfile::tempdir().unwrap();
        let servers = ["a.example:1".to_owned()];
        let programs = program("uname", "/usr/bin/uname");
        allow(directory.path(), &servers, Some("hv-1"), &programs).unwrap();
        let agent = load(directory.path()).unwrap();
        assert_eq!(agent.servers, servers);
        assert_eq!(agent.hostname, "hv-1");
        assert_eq!(
            agent.programs["uname"].path,
            PathBuf::from("/usr/bin/uname")
        );
        let text = file::read(&directory.path().join(FILE_NAME)).unwrap();
        allow(directory.path(), &[], None, &programs).unwrap();
        assert_eq!(file::read(&directory.path().join(FILE_NAME)).unwrap(), text);
    }

    #[test]
    fn allowing_a_program_leaves_the_rest_of_the_file_alone() {
        for before in [
            "# mine\ncapacity = 3 # few\n\n[exec.programs]\na = { path = '/a' }\n\n[labels]\nrack = '7'\n",
            "capacity = 3",
            "capacity = 3\n[exec.programs.a]\npath = '/a'\nextra_args = false\n",
            "",
        ] {
            let directory = tempfile::tempdir().unwrap();
            let path = directory.path().join(FILE_NAME);
            std::fs::write(&path, before).unwrap();
            let known = load(directory.path()).unwrap();
            allow(directory.path(), &[], None, &program("b", "/b")).unwrap();
            let mut agent = load(directory.path()).unwrap();
            assert_eq!(
                agent.programs.remove("b").unwrap().path,
                PathBuf::from("/b")
            );
            assert_eq!(agent, known, "{before}");
        }
    }

    #[test]
    fn a_file_that_cannot_be_added_to_is_left_as_it_was() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join(FILE_NAME);
        let before = "[exec]\nprograms = { a = { path = '/a' } }\n";
        std::fs::write(&path, before).unwrap();
        let fault = allow(directory.path(), &[], None, &program("b", "/b")).unwrap_err();
        assert!(fault.advice.unwrap().contains("by hand"));
        assert_eq!(file::read(&path).unwrap(), before);
    }

    #[test]
    fn a_program_is_not_silently_replaced() {
        let directory = tempfile::tempdir().unwrap();
        allow(directory.path(), &[], None, &program("ls", "/bin/ls")).unwrap();
        let fault = allow(directory.path(), &[], None, &program("ls", "/tmp/ls")).unwrap_err();
        assert!(fault.what.contains("/bin/ls"), "{fault:?}");
    }
}
