//! `batch`: runs the writes of a file or of standard input, with a bar.
//!
//! Invariants:
//! - writes of the same key are applied in the order of their lines;
//! - a failure names the first line that is not known to be applied, from which the file can be run again.
//!
//! Not here: the format of a line (batch_format).

use std::fs::File;
use std::io::{BufRead, BufReader, Read as _};
use std::path::{Path, PathBuf};

use kv_client::{Batch, BatchResult};
use kv_proto::limits::{BATCH_BYTES_MAX, BATCH_OPERATIONS_MAX, KEY_BYTES_MAX, VALUE_BYTES_MAX};
use serde_json::json;

use crate::batch_format::{Encodings, Operation, parse};
use crate::context::Context;
use crate::exit::{Exit, Explain as _, Failure};
use crate::human;
use crate::progress::Progress;

/// Writes sent at a time: spread over the shards they fill a log entry of each.
const GROUP_OPERATIONS: usize = 2048;

/// Bytes sent at a time, so that memory stays small whatever the file.
const GROUP_BYTES: usize = BATCH_BYTES_MAX / 2;

/// A line: a largest key and value with every byte escaped as `\xNN`, and the words around them.
const LINE_BYTES_MAX: usize = 4 * (KEY_BYTES_MAX + VALUE_BYTES_MAX) + 1024;

/// `batch`.
#[derive(Clone, Debug, clap::Args)]
#[command(after_help = FORMAT)]
pub(crate) struct BatchArgs {
    /// A file of writes; `-` for standard input
    file: PathBuf,
    /// Apply all or nothing: one atomic batch; all keys must belong to one shard
    #[arg(long)]
    atomic: bool,
    /// Begin at this line, to go on after a failure
    #[arg(long, value_name = "LINE", default_value_t = 1, conflicts_with = "atomic")]
    from_line: u64,
}

const FORMAT: &str = "\
Each line is one write, as words or as JSON:
  put KEY VALUE                     quote what holds blanks; \"\\xNN\" for any byte
  del KEY
  {\"key\": \"a\", \"value\": \"b\"}        key_base64 and value_base64 for other than text
  {\"op\": \"del\", \"key\": \"a\"}
Blank lines and lines that begin with # are skipped. An entry of scan -o json is a line.";

/// Writes of consecutive lines.
#[derive(Default)]
struct Group {
    operations: Vec<(u64, Operation)>,
    bytes: usize,
}

impl Group {
    fn is_full(&self) -> bool {
        self.operations.len() >= GROUP_OPERATIONS || self.bytes >= GROUP_BYTES
    }

    fn push(&mut self, line: u64, operation: Operation) {
        self.bytes += operation.len();
        self.operations.push((line, operation));
    }

    fn batch(&self, batch: Batch) -> Batch {
        self.operations.iter().fold(batch, |batch, (_, operation)| match operation {
            Operation::Put { key, value } => batch.put(key.clone(), value.clone()),
            Operation::Delete { key } => batch.delete(key.clone()),
        })
    }
}

/// What was done so far.
#[derive(Clone, Copy, Debug, Default)]
struct Done {
    applied: u64,
    deletes_that_found_a_key: u64,
}

/// Lines with their numbers, and how far the file was read.
struct Lines {
    reader: Box<dyn BufRead + Send>,
    name: String,
    number: u64,
    read: u64,
    whole: Option<u64>,
}

impl Lines {
    fn open(file: &Path) -> Result<Self, Failure> {
        if file.as_os_str() == "-" {
            let reader = Box::new(BufReader::new(std::io::stdin()));
            return Ok(Self { reader, name: "standard input".into(), number: 0, read: 0, whole: None });
        }
        let opened = File::open(file).map_err(|error| Failure::local("read", file, &error))?;
        let whole = opened.metadata().ok().filter(std::fs::Metadata::is_file).map(|metadata| metadata.len());
        let reader = Box::new(BufReader::new(opened));
        Ok(Self { reader, name: file.display().to_string(), number: 0, read: 0, whole })
    }

    /// The next line; None at the end.
    fn next(&mut self) -> Result<Option<String>, Failure> {
        let mut bytes = Vec::new();
        let mut limited = (&mut self.reader).take(LINE_BYTES_MAX as u64 + 1);
        let count = limited
            .read_until(b'\n', &mut bytes)
            .map_err(|error| Failure::local("read", Path::new(&self.name), &error))?;
        if count == 0 {
            return Ok(None);
        }
        self.number += 1;
        self.read += count as u64;
        if count > LINE_BYTES_MAX {
            return Err(self.fault(&format!("longer than {}", human::size(LINE_BYTES_MAX as u64))));
        }
        String::from_utf8(bytes).map(Some).map_err(|_| self.fault("not UTF-8; write \"\\xNN\" or use key_base64"))
    }

    fn fault(&self, why: &str) -> Failure {
        Failure::usage(format!("{} line {}: {why}", self.name, self.number))
    }
}

impl Context {
    /// `batch`.
    pub(crate) async fn batch(&self, args: &BatchArgs) -> Result<Exit, Failure> {
        let mut lines = Lines::open(&args.file)?;
        let encodings = Encodings { key: self.global.key_encoding, value: self.global.value_encoding };
        let progress = match lines.whole {
            Some(whole) => Progress::bytes(&self.output, whole),
            None => Progress::endless(&self.output),
        };
        let (mut group, mut done) = (Group::default(), Done::default());
        while let Some(line) = lines.next()? {
            let operation = parse(&line, encodings).map_err(|why| stopped(lines.fault(&why), &done, lines.number))?;
            let Some(operation) = operation.filter(|_| lines.number >= args.from_line) else { continue };
            group.push(lines.number, operation);
            if args.atomic {
                within_one_batch(&group)?;
            } else if group.is_full() {
                self.apply_group(&std::mem::take(&mut group), &mut done).await?;
                progress.set(lines.read, format!("{} writes", human::grouped(done.applied)));
            }
        }
        if args.atomic {
            self.apply_atomically(&group, &mut done).await?;
        } else {
            self.apply_group(&group, &mut done).await?;
        }
        drop(progress);
        let json = json!({ "applied": done.applied, "deleted": done.deletes_that_found_a_key, "atomic": args.atomic });
        let together = if args.atomic { " together" } else { "" };
        self.output.show(json, |_| format!("{} applied{together}", human::count(count(done.applied), "write")))?;
        Ok(Exit::Ok)
    }

    async fn apply_atomically(&self, group: &Group, done: &mut Done) -> Result<(), Failure> {
        if group.operations.is_empty() {
            return Ok(());
        }
        let result = group.batch(self.here().batch()).await.map_err(|error| error.write("atomic batch"))?;
        add(done, &result, group.operations.len());
        Ok(())
    }

    async fn apply_group(&self, group: &Group, done: &mut Done) -> Result<(), Failure> {
        if group.operations.is_empty() {
            return Ok(());
        }
        let first = group.operations.first().map_or(0, |(line, _)| *line);
        let spread = group.batch(self.here().batch()).spread();
        let parts = spread.await.map_err(|error| stopped(error.write("batch"), done, first))?;
        let mut worst: Option<(u64, Failure)> = None;
        for part in parts {
            match &part.result {
                Ok(result) => add(done, result, part.operations.len()),
                Err(error) => {
                    let lines = part.operations.iter().filter_map(|position| group.operations.get(*position));
                    let line = lines.map(|(line, _)| *line).min().unwrap_or(first);
                    let failure = error.write("batch");
                    let is_worse = worst.as_ref().is_none_or(|(_, known)| known.exit != Exit::Unknown);
                    let earliest = worst.as_ref().map_or(line, |(known, _)| line.min(*known));
                    worst = match worst {
                        Some((_, known)) if !is_worse => Some((earliest, known)),
                        Some(_) | None => Some((earliest, failure)),
                    };
                }
            }
        }
        match worst {
            Some((line, failure)) => Err(stopped(failure, done, line)),
            None => Ok(()),
        }
    }
}

fn count(number: u64) -> usize {
    usize::try_from(number).unwrap_or(usize::MAX)
}

fn add(done: &mut Done, result: &BatchResult, operations: usize) {
    if let BatchResult::Applied { deleted, .. } = result {
        done.applied += operations as u64;
        done.deletes_that_found_a_key += u64::from(*deleted);
    }
}

/// Says what stands and how to go on.
fn stopped(failure: Failure, done: &Done, line: u64) -> Failure {
    if failure.exit == Exit::Usage && done.applied == 0 {
        return failure;
    }
    let applied = human::count(count(done.applied), "write");
    failure.advise(format!(
        "{applied} applied for certain; writes are repeatable: go on with --from-line {line} once the cause is gone"
    ))
}

/// Refuses early what the cluster would refuse late.
fn within_one_batch(group: &Group) -> Result<(), Failure> {
    let (operations, bytes) = (group.operations.len(), group.bytes);
    if operations > BATCH_OPERATIONS_MAX || bytes > BATCH_BYTES_MAX {
        let limit = format!("{BATCH_OPERATIONS_MAX} writes and {}", human::size(BATCH_BYTES_MAX as u64));
        return Err(Failure::usage(format!("an atomic batch holds at most {limit}"))
            .advise("leave --atomic out to apply the writes in many batches"));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines(text: &'static str) -> Lines {
        Lines { reader: Box::new(text.as_bytes()), name: "f".into(), number: 0, read: 0, whole: None }
    }

    #[test]
    fn lines_are_counted_and_the_last_may_lack_its_end() {
        let mut lines = lines("a\nb");
        assert_eq!(lines.next().unwrap().as_deref(), Some("a\n"));
        assert_eq!(lines.next().unwrap().as_deref(), Some("b"));
        assert_eq!((lines.next().unwrap(), lines.number, lines.read), (None, 2, 3));
    }

    #[test]
    fn a_fault_names_file_and_line() {
        let mut lines = lines("put a\n");
        lines.next().unwrap();
        assert_eq!(lines.fault("bad").to_string(), "f line 1: bad");
    }

    #[test]
    fn after_a_failure_it_says_what_stands_and_where_to_go_on() {
        let done = Done { applied: 1000, deletes_that_found_a_key: 0 };
        let failure = stopped(Failure::unavailable("no leader"), &done, 1001);
        assert!(failure.json().to_string().contains("1,000 writes applied for certain"));
        assert!(failure.json().to_string().contains("--from-line 1001"));
    }

    #[test]
    fn an_atomic_batch_over_the_limit_is_refused_before_it_is_sent() {
        let mut group = Group::default();
        for line in 0..=BATCH_OPERATIONS_MAX as u64 {
            group.push(line, Operation::Delete { key: "k".into() });
        }
        assert_eq!(within_one_batch(&group).unwrap_err().exit, Exit::Usage);
    }
}
