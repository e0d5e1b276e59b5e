//! Bars for what takes a while, on standard error of a terminal; nothing where nobody watches.
//!
//! Not here: what is being waited for (action, batch).

use std::borrow::Cow;
use std::io::IsTerminal as _;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use crate::output::Output;

/// A bar that is hidden unless standard error is a terminal and the result is for people.
pub(crate) struct Progress {
    bar: ProgressBar,
}

impl Progress {
    /// From nothing to `whole`, in units of no name.
    pub(crate) fn share(output: &Output, whole: u64) -> Self {
        Self::new(output, Some(whole), "{spinner} [{bar:30}] {percent:>3} %  {elapsed}  {wide_msg}")
    }

    /// Bytes read of a file.
    pub(crate) fn bytes(output: &Output, whole: u64) -> Self {
        let template = "{spinner} [{bar:30}] {percent:>3} %  {bytes}/{total_bytes}  eta {eta}  {wide_msg}";
        Self::new(output, Some(whole), template)
    }

    /// Of unknown length.
    pub(crate) fn endless(output: &Output) -> Self {
        Self::new(output, None, "{spinner} {elapsed}  {wide_msg}")
    }

    fn new(output: &Output, whole: Option<u64>, template: &str) -> Self {
        let visible = std::io::stderr().is_terminal() && !output.is_json();
        let target = if visible { ProgressDrawTarget::stderr() } else { ProgressDrawTarget::hidden() };
        let bar = ProgressBar::with_draw_target(whole, target);
        if let Ok(style) = ProgressStyle::with_template(template) {
            bar.set_style(style.progress_chars("=> "));
        }
        Self { bar }
    }

    /// Where it stands and what it does.
    pub(crate) fn set(&self, position: u64, message: impl Into<Cow<'static, str>>) {
        self.bar.set_message(message);
        self.bar.set_position(position);
        self.bar.tick();
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.bar.finish_and_clear();
    }
}
