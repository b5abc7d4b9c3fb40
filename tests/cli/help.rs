//! Help, completions and manual pages.

use std::process::{Command, Stdio};

use super::harness::Home;

/// The commands that `vault help` lists.
fn commands() -> Vec<String> {
    let help = Home::new().run(&["--help"]);
    let (_, list) = help.ok().split_once("Commands:\n").expect("help lists the commands");
    let (list, _) = list.split_once("\n\n").expect("a blank line ends the list");
    let names = list.lines().filter_map(|line| line.strip_prefix("  ")).filter(|line| !line.starts_with(' '));
    names.map(|line| line.split_whitespace().next().expect("a name").to_owned()).collect()
}

#[test]
fn every_help_says_what_it_is_about_and_lists_the_exit_codes() {
    let commands = commands();
    assert!(commands.len() > 8, "the list of commands was read: {commands:?}");
    for command in commands.iter().filter(|command| *command != "help") {
        let help = Home::new().run(&[command, "--help"]);
        let text = help.ok();
        assert!(text.contains("Exit codes: 0 ok"), "{command}: {text}");
        assert!(text.lines().next().is_some_and(|line| line.len() > 20), "{command} has no sentence: {text}");
    }
}

#[test]
fn no_line_of_help_is_wider_than_the_terminal_it_was_written_for() {
    for command in commands() {
        for line in Home::new().run(&["help", &command]).ok().lines() {
            assert!(line.chars().count() <= 110, "{command}: {line}");
        }
    }
}

#[test]
fn completions_are_scripts_of_their_shells() {
    for (shell, word) in [("bash", "complete -F"), ("zsh", "#compdef vault"), ("fish", "complete -c vault")] {
        let script = Home::new().run(&["completions", shell]);
        assert!(script.ok().contains(word), "{shell}");
        // Only where that shell is there to ask.
        let home = Home::new();
        let file = home.file("script", script.ok());
        if let Ok(checked) = Command::new(shell).args(["-n", &file]).output() {
            assert_eq!(String::from_utf8_lossy(&checked.stderr), "", "{shell} understands its script");
        }
    }
    Home::new().run(&["completions", "tcsh"]).fails(2, &["tcsh"]);
}

#[test]
fn there_is_a_manual_page_for_every_command() {
    let home = Home::new();
    home.run(&["man", home.path("pages").to_str().expect("plain")]).ok();
    for command in commands().iter().filter(|command| *command != "help") {
        let page = std::fs::read_to_string(home.path(&format!("pages/vault-{command}.1"))).expect("the page is there");
        assert!(page.contains(".SH DESCRIPTION") && page.contains("Exit codes"), "{command}: {page}");
    }
}

#[test]
fn a_reader_that_has_seen_enough_is_no_error_to_talk_about() {
    let home = Home::new();
    let mut command = home.vault(&["completions", "bash"]);
    let (reader, writer) = std::io::pipe().expect("pipes can be made");
    drop(reader);
    let done = command.stdout(writer).stderr(Stdio::piped()).spawn().and_then(std::process::Child::wait_with_output);
    let done = done.expect("the program was built");
    assert_eq!((done.status.code(), &*done.stderr), (Some(141), &b""[..]), "as other programs of a shell pipe end");
}
