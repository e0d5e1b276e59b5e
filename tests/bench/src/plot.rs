//! The plot of the page: throughput of both systems under each load.
//!
//! Not here: tables (page).

use std::fmt::Write as _;

use crate::page::whole;
use crate::record::{Record, median};
use crate::shapes::SHAPES;

const WIDTH: f64 = 860.0;
const LABELS: f64 = 290.0;
/// Room to the right of the longest bar for its figure.
const FIGURES: f64 = 150.0;
const BAR: f64 = 15.0;
const GROUP: f64 = 44.0;
const TOP: f64 = 56.0;

/// On white, so that it reads on dark pages as well.
pub(crate) fn svg(record: &Record) -> String {
    let groups: Vec<(&str, f64, f64)> = SHAPES
        .iter()
        .filter_map(|shape| {
            let versus = record.shapes.get(shape.name)?;
            let kv = median(versus.kv.iter().map(|sample| sample.keys_per_second));
            let etcd = median(versus.etcd.iter().map(|sample| sample.keys_per_second));
            Some((shape.title, kv, etcd))
        })
        .collect();
    let most = groups.iter().map(|(_, kv, etcd)| kv.max(*etcd)).fold(1.0, f64::max);
    let scale = (WIDTH - LABELS - FIGURES) / most;
    let mut body = String::new();
    let mut top = TOP;
    for (title, kv, etcd) in &groups {
        group(&mut body, top, title, [("kv", *kv), ("etcd", *etcd)], scale);
        top += GROUP;
    }
    let height = top + 12.0;
    format!(
        r##"<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" font-family="ui-sans-serif, Helvetica, Arial, sans-serif" font-size="13" role="img" aria-label="Keys per second of kv and etcd under the same loads">
  <style>.kv{{fill:#4f46e5}}.etcd{{fill:#94a3b8}}.figure{{fill:#475569;font-size:12px}}</style>
  <rect width="{WIDTH}" height="{height}" rx="8" fill="#ffffff"/>
  <text x="16" y="30" font-weight="600">Keys per second, three nodes and the load on one machine</text>
  <rect class="kv" x="{kv}" y="19" width="12" height="12" rx="2"/><text x="{kv_text}" y="30">kv</text>
  <rect class="etcd" x="{etcd}" y="19" width="12" height="12" rx="2"/><text x="{etcd_text}" y="30">etcd</text>
{body}</svg>
"##,
        kv = WIDTH - 140.0,
        kv_text = WIDTH - 122.0,
        etcd = WIDTH - 84.0,
        etcd_text = WIDTH - 66.0,
    )
}

fn group(body: &mut String, top: f64, title: &str, bars: [(&str, f64); 2], scale: f64) {
    let [(_, kv), (_, etcd)] = bars;
    // Writing to a string cannot fail.
    let _ = writeln!(
        body,
        r#"  <text x="{:.0}" y="{:.1}" text-anchor="end">{title}</text>"#,
        LABELS - 12.0,
        top + BAR + 5.0
    );
    for (number, (system, figure)) in bars.into_iter().enumerate().filter(|(_, (_, figure))| *figure > 0.0) {
        let y = top + if number == 0 { 0.0 } else { BAR + 2.0 };
        let width = (figure * scale).max(1.0);
        let ratio = if number == 0 && etcd > 0.0 { format!("  ({:.1} x)", kv / etcd) } else { String::new() };
        let _ = writeln!(
            body,
            r#"  <rect class="{system}" x="{LABELS}" y="{y:.1}" width="{width:.1}" height="{BAR}" rx="2"/><text class="figure" x="{:.1}" y="{:.1}">{}{ratio}</text>"#,
            LABELS + width + 6.0,
            y + BAR - 3.0,
            whole(figure)
        );
    }
}
