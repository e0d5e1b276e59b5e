//! The text of `/metrics`, read as strictly as the OpenMetrics specification writes it (version 1.0).
//!
//! Invariants: whatever a parser may refuse is refused: a sample without a family, a family twice or in pieces, a sample
//! twice, a unit that is no suffix, buckets that do not ascend, text after the end.
//!
//! Not here: exemplars, which no node sends.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Context as _, Result, bail, ensure};

/// One line of values.
#[derive(Clone, Debug, PartialEq)]
pub struct Sample {
    /// With its suffix.
    pub name: String,
    /// By name.
    pub labels: BTreeMap<String, String>,
    /// Infinity and NaN are values too.
    pub value: f64,
}

impl Sample {
    /// A label's value; empty if it has none.
    #[must_use]
    pub fn label(&self, name: &str) -> &str {
        self.labels.get(name).map_or("", String::as_str)
    }
}

#[derive(Clone, Debug, Default)]
struct Family {
    kind: String,
    has_help: bool,
    samples: Vec<Sample>,
}

/// All that one scrape said.
#[derive(Clone, Debug, Default)]
pub struct Exposition {
    families: BTreeMap<String, Family>,
}

impl Exposition {
    /// Reads a whole text.
    pub fn parse(text: &str) -> Result<Self> {
        let body = text.strip_suffix("# EOF\n").context("it does not end with # EOF")?;
        let mut exposition = Self::default();
        let mut current = String::new();
        for line in body.lines() {
            exposition.line(line, &mut current).with_context(|| format!("line {line:?}"))?;
        }
        for (name, family) in &exposition.families {
            family.check(name).with_context(|| format!("family {name}"))?;
        }
        Ok(exposition)
    }

    /// Names of all families.
    pub fn families(&self) -> impl Iterator<Item = &str> {
        self.families.keys().map(String::as_str)
    }

    /// The type of a family, as in `counter`.
    #[must_use]
    pub fn kind(&self, family: &str) -> Option<&str> {
        Some(self.families.get(family)?.kind.as_str())
    }

    /// The samples of this name.
    pub fn samples(&self, name: &str) -> impl Iterator<Item = &Sample> {
        self.families.values().flat_map(|family| &family.samples).filter(move |sample| sample.name == name)
    }

    /// The only sample of this name with these labels among its own.
    pub fn value(&self, name: &str, labels: &[(&str, &str)]) -> Result<f64> {
        let fits = |sample: &&Sample| labels.iter().all(|(label, value)| sample.label(label) == *value);
        let found: Vec<&Sample> = self.samples(name).filter(fits).collect();
        match found.as_slice() {
            [only] => Ok(only.value),
            several => bail!("{} samples {name} with {labels:?}", several.len()),
        }
    }

    fn line(&mut self, line: &str, current: &mut String) -> Result<()> {
        if let Some(meta) = line.strip_prefix("# ") {
            let (word, rest) = meta.split_once(' ').context("no name")?;
            let (name, said) = rest.split_once(' ').context("nothing said")?;
            if name != current {
                ensure!(!self.families.contains_key(name), "{name} begins a second time");
                name.clone_into(current);
            }
            let family = self.families.entry(name.to_owned()).or_default();
            ensure!(family.samples.is_empty(), "what is said of a family comes before its samples");
            match word {
                "TYPE" => ensure!(std::mem::replace(&mut family.kind, said.to_owned()).is_empty(), "a second TYPE"),
                "HELP" => ensure!(!std::mem::replace(&mut family.has_help, true), "a second HELP"),
                "UNIT" => ensure!(name.ends_with(&format!("_{said}")), "{said} is not the end of {name}"),
                other => bail!("{other} means nothing"),
            }
            return Ok(());
        }
        ensure!(!line.starts_with('#') && !line.is_empty(), "neither a sample nor said of a family");
        let sample = parse_sample(line)?;
        let family = self.families.get_mut(current).context("a sample before every family")?;
        let suffix = sample.name.strip_prefix(current.as_str()).context("a sample of another family")?;
        let fits: &[&str] = match family.kind.as_str() {
            "counter" => &["_total", "_created"],
            "histogram" => &["_bucket", "_count", "_sum", "_created"],
            "gauge" => &[""],
            "info" => &["_info"],
            kind => bail!("type {kind:?}"),
        };
        ensure!(fits.contains(&suffix), "no suffix of a {}", family.kind);
        family.samples.push(sample);
        Ok(())
    }
}

impl Family {
    fn check(&self, name: &str) -> Result<()> {
        ensure!(!self.kind.is_empty() && self.has_help, "it has no TYPE or no HELP");
        let mut seen = BTreeSet::new();
        for sample in &self.samples {
            ensure!(seen.insert((&sample.name, &sample.labels)), "{sample:?} comes twice");
            ensure!(self.kind != "counter" || sample.value >= 0.0, "{sample:?} is below 0");
        }
        if self.kind == "histogram" { self.check_buckets(name) } else { Ok(()) }
    }

    /// Buckets of each set of labels ascend, and the last holds all.
    fn check_buckets(&self, name: &str) -> Result<()> {
        let mut last: BTreeMap<BTreeMap<String, String>, (f64, f64)> = BTreeMap::new();
        for bucket in self.samples.iter().filter(|sample| sample.name.ends_with("_bucket")) {
            let mut labels = bucket.labels.clone();
            let bound = number(&labels.remove("le").context("a bucket without le")?)?;
            let (below, held) = last.insert(labels, (bound, bucket.value)).unwrap_or((f64::NEG_INFINITY, 0.0));
            ensure!(bound > below && bucket.value >= held, "{bucket:?} after {held} up to {below}");
        }
        let counts: Vec<&Sample> = self.samples.iter().filter(|s| s.name == format!("{name}_count")).collect();
        ensure!(counts.len() == last.len(), "{} counts of {} histograms", counts.len(), last.len());
        for count in counts {
            let end = last.get(&count.labels).context("a count without buckets")?;
            ensure!(*end == (f64::INFINITY, count.value), "{count:?}, but the buckets end with {end:?}");
        }
        Ok(())
    }
}

fn parse_sample(line: &str) -> Result<Sample> {
    let name: String = line.chars().take_while(|c| c.is_ascii_alphanumeric() || matches!(c, '_' | ':')).collect();
    ensure!(name.starts_with(|c: char| !c.is_ascii_digit()), "no name");
    let mut rest = line.get(name.len()..).unwrap_or_default();
    let mut labels = BTreeMap::new();
    if let Some(mut inner) = rest.strip_prefix('{') {
        loop {
            let (label, after) = inner.split_once("=\"").context("a label without a value")?;
            let (value, after) = quoted(after)?;
            ensure!(labels.insert(label.to_owned(), value).is_none(), "label {label} twice");
            match after.strip_prefix(',') {
                Some(more) => inner = more,
                None => {
                    rest = after.strip_prefix('}').context("labels do not end")?;
                    break;
                }
            }
        }
    }
    let value = number(rest.strip_prefix(' ').context("no blank before the value")?)?;
    Ok(Sample { name, labels, value })
}

/// Up to the closing quote, and what follows it.
fn quoted(text: &str) -> Result<(String, &str)> {
    let mut value = String::new();
    let mut characters = text.char_indices();
    while let Some((at, c)) = characters.next() {
        match c {
            '"' => return Ok((value, text.get(at + 1..).unwrap_or_default())),
            '\\' => match characters.next().map(|(_, escaped)| escaped) {
                Some('n') => value.push('\n'),
                Some(escaped @ ('"' | '\\')) => value.push(escaped),
                other => bail!("escape {other:?}"),
            },
            c => value.push(c),
        }
    }
    bail!("a value without an end")
}

fn number(text: &str) -> Result<f64> {
    match text {
        "+Inf" => Ok(f64::INFINITY),
        "-Inf" => Ok(f64::NEG_INFINITY),
        "NaN" => Ok(f64::NAN),
        _ => text.parse().with_context(|| format!("{text:?} is no number")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = "# HELP a Counts.\n# TYPE a counter\na_total{x=\"q\\\"\\n\"} 2\na_total{x=\"\"} 0\n\
        # HELP b_seconds Times.\n# TYPE b_seconds histogram\n# UNIT b_seconds seconds\n\
        b_seconds_sum 0.5\nb_seconds_count 3\nb_seconds_bucket{le=\"0.1\"} 1\nb_seconds_bucket{le=\"+Inf\"} 3\n\
        # HELP c Is.\n# TYPE c gauge\nc -1\n# EOF\n";

    #[test]
    fn what_is_written_by_the_rules_is_read() {
        let read = Exposition::parse(GOOD).unwrap();
        assert_eq!(read.families().collect::<Vec<_>>(), ["a", "b_seconds", "c"]);
        assert!((read.value("a_total", &[("x", "q\"\n")]).unwrap() - 2.0).abs() < 1e-9);
        assert!(read.value("a_total", &[]).is_err(), "two of them");
        assert_eq!((read.kind("c"), read.kind("d")), (Some("gauge"), None));
    }

    #[test]
    fn what_breaks_a_rule_is_refused() {
        let broken = [
            ("# EOF\n", ""),
            ("# EOF\n", "# EOF\nc 2\n"),
            ("c -1", "c -1\nc -1"),
            ("c -1", "c one"),
            ("c -1", "d -1"),
            ("c -1", "c{x=\"1} -1"),
            ("c -1", "c -1\n# HELP a Counts.\n# TYPE a counter\na_total 2"),
            ("a_total{x=\"\"} 0", "a{x=\"\"} 0"),
            ("a_total{x=\"\"} 0", "a_total{x=\"\"} -1"),
            ("# UNIT b_seconds seconds", "# UNIT b_seconds bytes"),
            ("le=\"+Inf\"} 3", "le=\"+Inf\"} 0"),
            ("le=\"+Inf\"} 3", "le=\"7\"} 3"),
            ("b_seconds_count 3", "b_seconds_count 4"),
            ("# TYPE c gauge\n", ""),
            ("# HELP c Is.\n", ""),
        ];
        for (from, to) in broken {
            assert!(GOOD.contains(from), "{from}");
            assert!(Exposition::parse(&GOOD.replacen(from, to, 1)).is_err(), "{from:?} as {to:?}");
        }
    }
}
