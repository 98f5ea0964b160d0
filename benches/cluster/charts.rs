//! What grows, as a chart.

use std::path::Path;

use plotters::prelude::*;

/// Lines over a common axis.
#[derive(Debug)]
pub struct Chart {
    title: &'static str,
    across: &'static str,
    up: &'static str,
    pub lines: Vec<Line>,
    /// Both axes.
    pub is_logarithmic: bool,
}

/// One line of a chart.
#[derive(Debug)]
pub struct Line {
    name: &'static str,
    points: Vec<(f64, f64)>,
}

impl Line {
    pub fn new(name: &'static str) -> Self {
        Self { name, points: Vec::new() }
    }

    pub fn add(&mut self, across: f64, up: f64) {
        println!("  {} at {across}: {}", self.name, told(up));
        self.points.push((across, up));
    }
}

/// Told apart by those who see no colours by their lightness.
const COLOURS: [RGBColor; 3] = [RGBColor(0, 90, 160), RGBColor(220, 120, 0), RGBColor(110, 110, 110)];
const SIZE: (u32, u32) = (760, 420);

impl Chart {
    pub fn new(title: &'static str, across: &'static str, up: &'static str) -> Self {
        Self { title, across, up, lines: Vec::new(), is_logarithmic: false }
    }

    /// The points in words.
    pub fn told(&self) -> String {
        let line = |line: &Line| {
            let points: Vec<String> = line.points.iter().map(|(x, y)| format!("{x:.0}: {}", told(*y))).collect();
            format!("{} ({} by {}): {}", line.name, self.up, self.across, points.join(", "))
        };
        self.lines.iter().map(line).collect::<Vec<_>>().join("\n")
    }

    /// Draws it as SVG.
    pub fn draw(&self, path: &Path) -> anyhow::Result<()> {
        let points = || self.lines.iter().flat_map(|line| line.points.iter().copied());
        let most = |part: fn((f64, f64)) -> f64| points().map(part).fold(0.0, f64::max);
        let least = |part: fn((f64, f64)) -> f64| points().map(part).fold(f64::INFINITY, f64::min);
        let (right, top) = (most(|point| point.0), most(|point| point.1));
        let (left, bottom) = (least(|point| point.0), least(|point| point.1));
        let root = SVGBackend::new(path, SIZE).into_drawing_area();
        root.fill(&WHITE)?;
        let mut builder = ChartBuilder::on(&root);
        builder.caption(self.title, ("sans-serif", 20)).margin(14).margin_right(30);
        builder.x_label_area_size(46).y_label_area_size(76);
        macro_rules! lines {
            ($chart:expr) => {{
                let mut chart = $chart;
                let mut mesh = chart.configure_mesh();
                mesh.x_desc(self.across).y_desc(self.up).axis_desc_style(("sans-serif", 14));
                mesh.label_style(("sans-serif", 12)).light_line_style(WHITE);
                mesh.x_label_formatter(&|at| short(*at)).y_label_formatter(&|at| short(*at)).draw()?;
                for (line, colour) in self.lines.iter().zip(COLOURS) {
                    let style = colour.stroke_width(2);
                    chart
                        .draw_series(LineSeries::new(line.points.iter().copied(), style))?
                        .label(line.name)
                        .legend(move |(x, y)| PathElement::new(vec![(x, y), (x + 18, y)], style));
                    let dots = line.points.iter().map(|point| Circle::new(*point, 4, colour.filled()));
                    chart.draw_series(dots)?;
                }
                let mut legend = chart.configure_series_labels();
                legend.position(SeriesLabelPosition::UpperLeft).label_font(("sans-serif", 13)).margin(8);
                legend.background_style(WHITE.mix(0.9)).border_style(BLACK.mix(0.3)).draw()?;
            }};
        }
        // The legend has the room above the lines to itself.
        if self.is_logarithmic {
            let up = bottom * 0.5..top * (top / bottom).powf(0.35).max(2.0);
            lines!(builder.build_cartesian_2d((left..right).log_scale(), up.log_scale())?);
        } else {
            lines!(builder.build_cartesian_2d(0.0..right * 1.05, 0.0..top * 1.4)?);
        }
        root.present()?;
        Ok(())
    }
}

/// A number as a sentence has room for.
fn told(number: f64) -> String {
    if number < 100.0 { format!("{number:.2}") } else { format!("{number:.0}") }
}

/// A number as an axis has room for: 300, 20k, 1M.
fn short(number: f64) -> String {
    match number {
        n if n >= 1e6 => format!("{}M", n / 1e6),
        n if n >= 1e4 => format!("{}k", n / 1e3),
        n if n >= 10.0 || n.fract() == 0.0 => format!("{n:.0}"),
        n => format!("{n:.1}"),
    }
}
