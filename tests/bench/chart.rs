//! Time and memory over file size, as a drawing.

use crate::plan::size;
use crate::report::Growth;

const LOADER: &str = "#1f6feb";
const PEER: &str = "#d9480f";

/// The size of a panel.
const WIDTH: f64 = 380.0;
const HEIGHT: f64 = 280.0;
const MARGIN: f64 = 60.0;
const TOP: f64 = 70.0;

/// One line in a panel.
struct Line {
    label: &'static str,
    colour: &'static str,
    dashes: &'static str,
    points: Vec<(f64, f64)>,
}

/// The chart. Both axes of both panels are logarithmic.
pub fn svg(growth: &[Growth], caption: &str) -> String {
    let line = |label, colour, dashes, value: &dyn Fn(&Growth) -> Option<f64>| Line {
        label,
        colour,
        dashes,
        points: growth.iter().filter_map(|growth| Some((growth.bytes as f64, value(growth)?))).collect(),
    };
    let times = [
        line("loader, warm load", LOADER, "", &|growth| growth.warm[0]),
        line("loader, cold load", LOADER, "6 4", &|growth| growth.cold[0]),
        line("loader, upload", LOADER, "2 3", &|growth| growth.upload[0]),
        line("peer, warm load", PEER, "", &|growth| growth.warm[1]),
        line("peer, cold load", PEER, "6 4", &|growth| growth.cold[1]),
        line("peer, upload", PEER, "2 3", &|growth| growth.upload[1]),
    ];
    let memory =
        [line("loader", LOADER, "", &|growth| growth.memory[0]), line("peer", PEER, "", &|growth| growth.memory[1])];
    let (width, height) = (2.0 * (WIDTH + MARGIN) + MARGIN, TOP + HEIGHT + 130.0);
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {width} {height}\" font-family=\"sans-serif\" font-size=\"12\">\n\
         <rect width=\"{width}\" height=\"{height}\" fill=\"white\"/>\n\
         <text x=\"{MARGIN}\" y=\"24\" font-size=\"14\">Time and peak memory over file size</text>\n\
         <text x=\"{MARGIN}\" y=\"42\" fill=\"#555\">{}</text>\n",
        escaped(caption)
    );
    panel(&mut svg, MARGIN, "seconds", &times);
    panel(&mut svg, 2.0 * MARGIN + WIDTH, "peak memory over idle, MiB", &memory);
    svg.push_str("</svg>\n");
    svg
}

fn panel(svg: &mut String, left: f64, title: &str, lines: &[Line]) {
    let all = || lines.iter().flat_map(|line| &line.points);
    let Some(first) = all().next() else { return };
    let (mut x, mut y) = ((first.0, first.0), (first.1, first.1));
    for point in all() {
        x = (x.0.min(point.0), x.1.max(point.0));
        y = (y.0.min(point.1), y.1.max(point.1));
    }
    // The axis spans whole powers of ten, at least one.
    let low = y.0.max(1e-6).log10().floor();
    let high = y.1.max(1e-6).log10().ceil().max(low + 1.0);
    let across = |value: f64| left + 10.0 + (value / x.0).ln() / (x.1 / x.0).ln().max(1e-9) * (WIDTH - 20.0);
    let up = |value: f64| TOP + HEIGHT - (value.max(1e-6).log10() - low) / (high - low) * HEIGHT;

    svg.push_str(&format!("<text x=\"{left}\" y=\"{}\">{title}</text>\n", TOP - 8.0));
    let mut power = low;
    while power <= high {
        let y = up(10_f64.powf(power));
        svg.push_str(&format!(
            "<path d=\"M{left} {y:.1}H{:.1}\" stroke=\"#ddd\"/><text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"end\">{}</text>\n",
            left + WIDTH,
            left - 6.0,
            y + 4.0,
            10_f64.powf(power)
        ));
        power += 1.0;
    }
    let mut sizes: Vec<u64> = all().map(|point| point.0 as u64).collect();
    sizes.sort_unstable();
    sizes.dedup();
    for bytes in sizes {
        svg.push_str(&format!(
            "<text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"middle\">{}</text>\n",
            across(bytes as f64),
            TOP + HEIGHT + 18.0,
            size(bytes)
        ));
    }
    for (index, line) in lines.iter().filter(|line| !line.points.is_empty()).enumerate() {
        let Line { label, colour, dashes, points } = line;
        let path: Vec<String> = points.iter().map(|(x, y)| format!("{:.1},{:.1}", across(*x), up(*y))).collect();
        svg.push_str(&format!(
            "<polyline points=\"{}\" fill=\"none\" stroke=\"{colour}\" stroke-width=\"2\" stroke-dasharray=\"{dashes}\"/>\n",
            path.join(" ")
        ));
        for (x, y) in points {
            svg.push_str(&format!(
                "<circle cx=\"{:.1}\" cy=\"{:.1}\" r=\"3\" fill=\"{colour}\"/>\n",
                across(*x),
                up(*y)
            ));
        }
        let (x, y) = (left + (index / 3) as f64 * 180.0, TOP + HEIGHT + 44.0 + (index % 3) as f64 * 20.0);
        svg.push_str(&format!(
            "<path d=\"M{x} {:.1}h28\" stroke=\"{colour}\" stroke-width=\"2\" stroke-dasharray=\"{dashes}\"/>\
             <text x=\"{:.1}\" y=\"{y:.1}\">{label}</text>\n",
            y - 4.0,
            x + 34.0
        ));
    }
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;")
}
