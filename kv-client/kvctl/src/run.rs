//! From the arguments to the exit code: parses, runs one command or the interactive mode, reports a failure.
//!
//! Invariants: a failure is printed exactly once, as JSON where the result would have been JSON.
//!
//! Not here: the commands (the module of each noun).

use std::io::{IsTerminal as _, Write as _};

use clap::{CommandFactory as _, Parser as _};

use crate::args::{Cli, Command};
use crate::context::Context;
use crate::exit::{Exit, Failure};
use crate::output::{Format, Output, When};
use crate::shell;

/// Runs the process's command line.
pub(crate) fn main() -> Exit {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => return refuse(&error, wants_json()),
    };
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            let failure = Failure::local("start", std::path::Path::new("the async runtime"), &error);
            return report(&failure, &Output::detect(cli.global.format(), cli.global.color));
        }
    };
    let output = Output::detect(cli.global.format(), cli.global.color);
    let interactive = std::io::stdin().is_terminal() && std::io::stdout().is_terminal();
    match cli.command {
        None if !interactive => {
            let failure = Failure::usage("no command given").advise("kvctl --help lists the commands");
            report(&failure, &output)
        }
        None | Some(Command::Shell) => match Context::new(cli.global) {
            Ok(context) => shell::run(&runtime, context),
            Err(failure) => report(&failure, &output),
        },
        Some(command) => {
            let done = Context::new(cli.global).and_then(|context| {
                let done = runtime.block_on(context.run(&command));
                runtime.block_on(context.client.close());
                done
            });
            done.unwrap_or_else(|failure| report(&failure, &output))
        }
    }
}

impl Context {
    /// Runs one command.
    pub(crate) async fn run(&self, command: &Command) -> Result<Exit, Failure> {
        if self.output.format == Format::Value && !matches!(command, Command::Get(_)) {
            return Err(Failure::usage("-o value is for get; the others know table and json"));
        }
        match command {
            Command::Put(args) => self.put(args).await,
            Command::Get(args) => self.get(args).await,
            Command::Del(args) => self.del(args).await,
            Command::Cas(args) => self.cas(args).await,
            Command::Scan(args) => self.scan(args).await,
            Command::Batch(args) => self.batch(args).await,
            Command::Keyspace(command) => self.keyspace(command).await,
            Command::Node(command) => self.node(command).await,
            Command::Shard(command) => self.shard(command).await,
            Command::Action(command) => self.action(command).await,
            Command::Status(args) => self.status(args).await,
            Command::Health => self.health().await,
            Command::Doctor(args) => self.doctor(args).await,
            Command::Bench(args) => self.bench(args).await,
            Command::Completions { shell } => {
                let mut script = Vec::new();
                clap_complete::generate(*shell, &mut Cli::command(), "kvctl", &mut script);
                self.output.raw(&script)?;
                Ok(Exit::Ok)
            }
            Command::Shell => Err(Failure::usage("this is the interactive mode already")),
        }
    }
}

/// Prints a failure for whoever reads it; its exit code.
pub(crate) fn report(failure: &Failure, output: &Output) -> Exit {
    if failure.is_closed_pipe() {
        return failure.exit;
    }
    let text = if output.is_json() { failure.json().to_string() } else { failure.render(output.error_look) };
    // Nothing is left to tell if standard error is gone.
    drop(writeln!(std::io::stderr().lock(), "{text}"));
    failure.exit
}

/// What clap says about a command line: help and version are answers, the rest is the caller's fault.
pub(crate) fn refuse(error: &clap::Error, json: bool) -> Exit {
    if !error.use_stderr() {
        drop(error.print());
        return Exit::Ok;
    }
    if json {
        let text = error.to_string();
        let words = text.split("\n\nUsage:").next().unwrap_or_default().split_whitespace().collect::<Vec<_>>();
        let why = words.join(" ");
        let failure = Failure::usage(why.trim_start_matches("error: "));
        return report(&failure, &Output::detect(Format::Json, When::Never));
    }
    drop(error.print());
    Exit::Usage
}

/// Whether the command line that could not be parsed asks for JSON.
fn wants_json() -> bool {
    let words: Vec<String> = std::env::args_os().map(|word| word.to_string_lossy().into_owned()).collect();
    let pairs = words.iter().zip(words.iter().skip(1));
    words.iter().any(|word| matches!(word.as_str(), "-ojson" | "-o=json" | "--output=json"))
        || pairs.into_iter().any(|(option, value)| matches!(option.as_str(), "-o" | "--output") && value == "json")
}
