//! The interactive mode: one connection, many commands, history, completion.
//!
//! Invariants: every line is parsed as a command line is; options given at the start hold for every line.
//!
//! Not here: what may be completed (completion), the commands (run).

use std::io::IsTerminal as _;
use std::path::PathBuf;

use clap::{CommandFactory as _, FromArgMatches as _};
use rustyline::completion::Completer;
use rustyline::error::ReadlineError;
use rustyline::hint::HistoryHinter;
use rustyline::history::FileHistory;
use rustyline::{CompletionType, Config, Editor, Helper, Highlighter, Hinter, Validator};
use tokio::runtime::Runtime;

use crate::args::{Cli, Command, Global};
use crate::completion::complete;
use crate::context::Context;
use crate::exit::{Exit, Failure};
use crate::run::{refuse, report};
use crate::words;

/// Lines kept between sessions.
const HISTORY_LINES: usize = 10_000;

const WELCOME: &str = "\
Commands are those of kvctl, without the kvctl. `help` lists them, Tab
completes, `use KEYSPACE` switches, `exit` or Ctrl-D leaves.";

/// Completes with what the cluster last said.
#[derive(Helper, Highlighter, Hinter, Validator)]
struct Assistant {
    keyspaces: Vec<String>,
    #[rustyline(Hinter)]
    hinter: HistoryHinter,
}

impl Completer for Assistant {
    type Candidate = String;

    fn complete(&self, line: &str, pos: usize, _: &rustyline::Context<'_>) -> rustyline::Result<(usize, Vec<String>)> {
        Ok(complete(line.get(..pos).unwrap_or(line), &self.keyspaces))
    }
}

/// What a line asks for.
enum Line {
    Nothing,
    Leave,
    Help,
    Use(String),
    Run(Box<Cli>),
}

/// Reads and runs lines until the end.
pub(crate) fn run(runtime: &Runtime, mut context: Context) -> Exit {
    let config = Config::builder()
        .completion_type(CompletionType::List)
        .max_history_size(HISTORY_LINES)
        .and_then(|config| config.history_ignore_dups(true))
        .map(|config| config.history_ignore_space(true).build());
    let editor = config.and_then(Editor::<Assistant, FileHistory>::with_config);
    let mut editor = match editor {
        Ok(editor) => editor,
        Err(error) => return report(&terminal(&error), &context.output),
    };
    editor.set_helper(Some(Assistant { keyspaces: Vec::new(), hinter: HistoryHinter {} }));
    let history = history_file();
    if let Some(file) = &history {
        // A first session has none.
        drop(editor.load_history(file));
    }
    if std::io::stdin().is_terminal() {
        context.output.note(WELCOME);
    }
    learn_keyspaces(runtime, &context, &mut editor);
    loop {
        let line = match editor.readline(&prompt(&context)) {
            Ok(line) => line,
            Err(ReadlineError::Interrupted) => continue,
            Err(ReadlineError::Eof) => break,
            Err(error) => return report(&terminal(&error), &context.output),
        };
        if !line.trim().is_empty() {
            drop(editor.add_history_entry(line.trim()));
        }
        match read(&line, &context.global) {
            Ok(Line::Nothing) => {}
            Ok(Line::Leave) => break,
            Ok(Line::Help) => {
                drop(Cli::command().print_help());
                context.output.note("Here also: use KEYSPACE, exit.");
            }
            Ok(Line::Use(keyspace)) => {
                learn_keyspaces(runtime, &context, &mut editor);
                match editor.helper().map_or(Ok(()), |assistant| known(&keyspace, &assistant.keyspaces)) {
                    Ok(()) => context.global.keyspace = keyspace,
                    Err(failure) => drop(report(&failure, &context.output)),
                }
            }
            Ok(Line::Run(cli)) => {
                let changes_keyspaces = matches!(cli.command, Some(Command::Keyspace(_)));
                run_line(runtime, &context, *cli);
                if changes_keyspaces {
                    learn_keyspaces(runtime, &context, &mut editor);
                }
            }
            Err(Refusal::Words(why)) => drop(report(&Failure::usage(why), &context.output)),
            Err(Refusal::Arguments(error)) => drop(refuse(&error, false)),
        }
        if let Some(file) = &history {
            drop(editor.append_history(file));
        }
    }
    runtime.block_on(context.client.close());
    Exit::Ok
}

fn run_line(runtime: &Runtime, context: &Context, cli: Cli) {
    let Some(command) = cli.command else { return };
    let done = context.with(cli.global).and_then(|context| {
        runtime.block_on(async {
            tokio::select! {
                done = context.run(&command) => done,
                _ = tokio::signal::ctrl_c() => Err(Failure::interrupted("interrupted")),
            }
        })
    });
    if let Err(failure) = done {
        report(&failure, &context.output);
    }
}

enum Refusal {
    Words(String),
    Arguments(clap::Error),
}

/// A line as a command line, with the session's options where it names none.
fn read(line: &str, session: &Global) -> Result<Line, Refusal> {
    let mut words = words::split(line).map_err(Refusal::Words)?;
    if words.first().is_some_and(|word| word == "kvctl") {
        words.remove(0);
    }
    match words.iter().map(String::as_str).collect::<Vec<_>>().as_slice() {
        [] => return Ok(Line::Nothing),
        ["exit" | "quit"] => return Ok(Line::Leave),
        ["help" | "?"] => return Ok(Line::Help),
        ["help", rest @ ..] => {
            words = rest.iter().map(ToString::to_string).chain(["--help".to_owned()]).collect();
        }
        ["use", keyspace] => return Ok(Line::Use((*keyspace).to_owned())),
        ["use", ..] => return Err(Refusal::Words("use takes the name of a keyspace".to_owned())),
        _ => {}
    }
    let matches = Cli::command()
        .no_binary_name(true)
        .subcommand_required(true)
        .try_get_matches_from(words)
        .map_err(Refusal::Arguments)?;
    let mut cli = Cli::from_arg_matches(&matches).map_err(Refusal::Arguments)?;
    cli.global.inherit(session, &matches);
    Ok(Line::Run(Box::new(cli)))
}

fn prompt(context: &Context) -> String {
    match context.global.keyspace.as_str() {
        "default" => "kv> ".to_owned(),
        keyspace => format!("kv {}> ", crate::values::show(keyspace.as_bytes())),
    }
}

/// Refuses a keyspace that the cluster does not list; while it does not answer any name will do.
fn known(keyspace: &str, keyspaces: &[String]) -> Result<(), Failure> {
    if keyspaces.is_empty() || keyspaces.iter().any(|known| known == keyspace) {
        return Ok(());
    }
    let shown = crate::values::show(keyspace.as_bytes());
    let names: Vec<_> = keyspaces.iter().map(|name| crate::values::show(name.as_bytes())).collect();
    let failure = Failure::no("KEYSPACE_NOT_FOUND", format!("there is no keyspace {shown}"));
    Err(failure.advise(format!("there are {}", crate::human::list(&names))))
}

/// For completion; without an answer the old names stay.
fn learn_keyspaces(runtime: &Runtime, context: &Context, editor: &mut Editor<Assistant, FileHistory>) {
    let patience = std::time::Duration::from_secs(1);
    let asked = runtime.block_on(async { tokio::time::timeout(patience, context.keyspaces()).await });
    if let (Ok(Ok(keyspaces)), Some(assistant)) = (asked, editor.helper_mut()) {
        assistant.keyspaces = keyspaces.into_iter().filter_map(|listing| Some(listing.keyspace?.name)).collect();
    }
}

/// `$XDG_STATE_HOME/kvctl/history`; None without a home.
fn history_file() -> Option<PathBuf> {
    let absolute = |name: &str| std::env::var_os(name).map(PathBuf::from).filter(|path| path.is_absolute());
    let state = absolute("XDG_STATE_HOME").or_else(|| Some(absolute("HOME")?.join(".local/state")))?;
    let folder = state.join("kvctl");
    std::fs::create_dir_all(&folder).ok()?;
    Some(folder.join("history"))
}

fn terminal(error: &ReadlineError) -> Failure {
    Failure::local("use", std::path::Path::new("the terminal"), &std::io::Error::other(error.to_string()))
}

#[cfg(test)]
mod tests {
    use clap::Parser as _;

    use super::*;

    fn session() -> Global {
        Cli::try_parse_from(["kvctl", "-k", "users", "-o", "json"]).unwrap().global
    }

    fn parsed(line: &str) -> Cli {
        match read(line, &session()) {
            Ok(Line::Run(cli)) => *cli,
            Ok(_) | Err(_) => panic!("{line} is a command"),
        }
    }

    #[test]
    fn a_line_is_a_command_line_with_the_options_of_the_session() {
        let cli = parsed("get 'a b'");
        assert!(matches!(cli.command, Some(Command::Get(_))));
        assert_eq!((cli.global.keyspace.as_str(), cli.global.format()), ("users", crate::output::Format::Json));
        assert_eq!(parsed("kvctl get a -k other").global.keyspace, "other");
        assert_eq!(parsed("get a -o table").global.format(), crate::output::Format::Table);
    }

    #[test]
    fn a_keyspace_that_is_not_there_is_not_used() {
        let keyspaces = ["default".to_owned(), "users".to_owned()];
        assert_eq!(known("users", &keyspaces), Ok(()));
        let failure = known("nothing", &keyspaces).unwrap_err();
        assert_eq!((failure.exit, failure.to_string().as_str()), (Exit::No, "there is no keyspace nothing"));
        assert_eq!(known("anything", &[]), Ok(()), "the cluster does not answer");
    }

    #[test]
    fn words_of_the_shell_are_understood() {
        assert!(matches!(read("", &session()), Ok(Line::Nothing)));
        assert!(matches!(read("exit", &session()), Ok(Line::Leave)));
        assert!(matches!(read("use orders", &session()), Ok(Line::Use(name)) if name == "orders"));
        assert!(matches!(read("use", &session()), Err(Refusal::Words(_))));
        assert!(matches!(read("get 'a", &session()), Err(Refusal::Words(_))));
        assert!(matches!(read("frobnicate", &session()), Err(Refusal::Arguments(_))));
    }
}
