//! What may stand at a place of a line in the interactive mode: commands, options, their values, keyspace names.
//!
//! Invariants: pure; the definition of the command line is the only source of words.
//!
//! Not here: the line editor (shell), completion scripts for other shells (clap_complete).

use clap::{Arg, CommandFactory as _};

use crate::args::Cli;

/// Words of the interactive mode that are no commands of the program.
pub(crate) const SHELL_WORDS: [&str; 4] = ["use", "help", "exit", "quit"];

/// The start of the word under the cursor, and the words that it may become.
pub(crate) fn complete(line: &str, keyspaces: &[String]) -> (usize, Vec<String>) {
    let start = line.rfind(char::is_whitespace).map_or(0, |blank| blank + 1);
    let (before, word) = line.split_at(start);
    let mut candidates = candidates(&before.split_whitespace().collect::<Vec<_>>(), word, keyspaces);
    candidates.retain(|candidate| candidate.starts_with(word));
    candidates.sort();
    candidates.dedup();
    (start, candidates)
}

fn candidates(before: &[&str], word: &str, keyspaces: &[String]) -> Vec<String> {
    let root = Cli::command();
    let mut command = &root;
    let mut path = Vec::new();
    for given in before {
        if let Some(next) = command.find_subcommand(given) {
            command = next;
            path.push(next.get_name());
        }
    }
    let arguments: Vec<&Arg> = command.get_arguments().chain(root.get_arguments()).collect();
    if let Some(option) = before.last().and_then(|last| option_named(&arguments, last)) {
        return values_of(option, keyspaces);
    }
    if word.starts_with('-') {
        return arguments.iter().filter_map(|argument| Some(format!("--{}", argument.get_long()?))).collect();
    }
    if command.has_subcommands() {
        let names = command.get_subcommands().map(|command| command.get_name().to_owned());
        let own = SHELL_WORDS.iter().filter(|_| path.is_empty() && before.is_empty()).map(ToString::to_string);
        if !path.is_empty() || before.is_empty() || before.iter().all(|word| word.starts_with('-')) {
            return names.filter(|name| name != "shell").chain(own).collect();
        }
    }
    let names_keyspace = matches!(path.as_slice(), ["keyspace", "delete"] | ["shard", "list"]);
    if names_keyspace || before == ["use"] {
        return keyspaces.to_vec();
    }
    let positional = command.get_positionals().next();
    positional.map(|argument| values_of(argument, keyspaces)).unwrap_or_default()
}

/// The option a word names, if it takes a value.
fn option_named<'a>(arguments: &[&'a Arg], word: &str) -> Option<&'a Arg> {
    let is_it = |argument: &&&Arg| match (word.strip_prefix("--"), word.strip_prefix('-')) {
        (Some(long), _) => argument.get_long() == Some(long),
        (None, Some(short)) => argument.get_short().is_some_and(|name| short.chars().eq([name])),
        (None, None) => false,
    };
    arguments.iter().find(is_it).copied().filter(|argument| argument.get_action().takes_values())
}

fn values_of(argument: &Arg, keyspaces: &[String]) -> Vec<String> {
    if argument.get_id() == "keyspace" {
        return keyspaces.to_vec();
    }
    argument.get_possible_values().iter().map(|value| value.get_name().to_owned()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(line: &str) -> Vec<String> {
        complete(line, &["default".into(), "users".into()]).1
    }

    #[test]
    fn commands_are_completed_level_by_level() {
        assert_eq!(words("sta"), ["status"]);
        assert_eq!(words("shard tr"), ["transfer-leader"]);
        assert_eq!(words("node dr"), ["drain"]);
        assert!(words("").contains(&"use".to_owned()));
        assert!(!words("shard ").contains(&"use".to_owned()));
    }

    #[test]
    fn keyspaces_are_completed_where_one_is_named() {
        for line in ["get a -k u", "get a --keyspace u", "use u", "keyspace delete u", "shard list u"] {
            assert_eq!(words(line), ["users"], "{line}");
        }
    }

    #[test]
    fn options_and_their_values_are_completed() {
        assert_eq!(words("scan --keys-"), ["--keys-only"]);
        assert_eq!(words("scan -o j"), ["json"]);
        assert_eq!(words("get a --key-encoding b"), ["base64"]);
        assert_eq!(words("completions z"), ["zsh"]);
    }

    #[test]
    fn only_the_last_word_is_replaced() {
        assert_eq!(complete("shard desc", &[]), (6, vec!["describe".to_owned()]));
    }
}
