//! The HTML page: bars drawn as SVG, one a figure, with the spread of its runs.

use super::{Figure, Report, Section, millions, shown};
use std::fmt::Write;

const STYLE: &str = "body{font:15px/1.5 system-ui,sans-serif;max-width:60em;margin:2em auto;padding:0 1em;\
    color:#222;background:#fff}h1{font-size:1.5em}h2{font-size:1.2em;margin-top:2em}\
    svg{width:100%;height:auto}text{font:12px system-ui,sans-serif;fill:#222}\
    .bar{fill:#4a7fb5}.run{fill:#c2542d}small{color:#666}\
    @media(prefers-color-scheme:dark){body{color:#ddd;background:#181818}text{fill:#ddd}small{color:#999}}";

/// The page of a report.
pub(crate) fn page(report: &Report) -> String {
    let mut page = format!(
        "<!doctype html><html lang=en><meta charset=utf-8><title>Spherule benchmark</title>\
         <style>{STYLE}</style><h1>Spherule: what a pod takes</h1>\
         <p>{} runs on each engine; {}. Bars are medians, dots the single runs.</p>",
        report.runs,
        escape(&report.machine)
    );
    if let Some(count) = report.kernel_instructions {
        let _ = write!(
            page,
            "<p>The guest kernel runs <b>{:.1} million instructions</b> until the agent runs.</p>",
            millions(count)
        );
    }
    for engine in &report.engines {
        let _ = write!(
            page,
            "<h2>Engine {}</h2><p><small>{}</small></p>",
            escape(&engine.engine),
            escape(&engine.detail)
        );
        for section in &engine.sections {
            plot(&mut page, section);
        }
        for (part, why) in &engine.failed {
            let _ = write!(
                page,
                "<p><b>{} could not be measured:</b> {}.</p>",
                escape(part),
                escape(why)
            );
        }
    }
    for (engine, why) in &report.skipped {
        let _ = write!(
            page,
            "<p>Engine {} was skipped: {}.</p>",
            escape(engine),
            escape(why)
        );
    }
    page.push_str("</html>\n");
    page
}

/// One bar a figure, all on one scale.
fn plot(page: &mut String, section: &Section) {
    const ROW: usize = 22;
    const LEFT: f64 = 270.0;
    const WIDTH: f64 = 420.0;
    let figures = &section.figures;
    let most = figures
        .iter()
        .map(|f| f.summary.max)
        .fold(f64::MIN_POSITIVE, f64::max);
    let height = figures.len() * ROW + 4;
    let _ = write!(
        page,
        "<h3>{}</h3><svg viewBox='0 0 800 {height}' role=img>",
        escape(&section.title)
    );
    for (row, Figure { name, summary }) in figures.iter().enumerate() {
        let (top, text) = (row * ROW + 3, row * ROW + 17);
        let middle = row * ROW + 11;
        let scale = |value: f64| value.max(0.0) / most * WIDTH;
        let _ = write!(
            page,
            "<text x=0 y={text}>{}</text><rect class=bar x={LEFT} y={top} width={:.1} height=16 />",
            escape(name),
            scale(summary.median)
        );
        for run in &summary.runs {
            let _ = write!(
                page,
                "<circle class=run cx={:.1} cy={middle} r=2.5 />",
                LEFT + scale(*run)
            );
        }
        let _ = write!(
            page,
            "<text x={:.1} y={text}>{}</text>",
            LEFT + scale(summary.max) + 8.0,
            shown(summary.median)
        );
    }
    page.push_str("</svg>");
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;")
        .replace('<', "&lt;")
        .replace('>', "&gt;")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::EngineReport;

    #[test]
    fn words_of_the_machine_cannot_become_markup() {
        let mut report = Report::new(5, Some(40_000_000));
        report.machine = "<script>".into();
        report.skipped.push(("kvm".into(), "a & b".into()));
        let mut engine = EngineReport::new("qemu");
        engine.fail("Files", &anyhow::anyhow!("<fio>"));
        report.engines.push(engine);
        let page = page(&report);
        assert!(!page.contains("<script>") && page.contains("a &amp; b"));
        assert!(page.contains("&lt;fio&gt;"));
        assert!(page.contains("40.0 million"));
    }
}
