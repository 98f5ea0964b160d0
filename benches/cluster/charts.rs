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
        println!("  {} at {across}: {up:.0}", self.name);
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
            let points: Vec<String> = line.points.iter().map(|(x, y)| format!("{x:.0}: {y:.0}")).collect();
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
        builder.caption(self.title, ("sans-serif", 20)).margin(14).x_label_area_size(42).y_label_area_size(72);
        macro_rules! lines {
            ($chart:expr) => {{
                let mut chart = $chart;
                chart.configure_mesh().x_desc(self.across).y_desc(self.up).light_line_style(WHITE).draw()?;
                for (line, colour) in self.lines.iter().zip(COLOURS) {
                    let style = colour.stroke_width(2);
                    chart
                        .draw_series(LineSeries::new(line.points.iter().copied(), style))?
                        .label(line.name)
                        .legend(move |(x, y)| PathElement::new(vec![(x, y), (x + 18, y)], style));
                    let dots = line.points.iter().map(|point| Circle::new(*point, 4, colour.filled()));
                    chart.draw_series(dots)?;
                }
                chart.configure_series_labels().background_style(WHITE.mix(0.9)).border_style(BLACK.mix(0.3)).draw()?;
            }};
        }
        if self.is_logarithmic {
            lines!(builder.build_cartesian_2d((left..right).log_scale(), (bottom * 0.5..top * 2.0).log_scale())?);
        } else {
            lines!(builder.build_cartesian_2d(0.0..right * 1.05, 0.0..top * 1.15)?);
        }
        root.present()?;
        Ok(())
    }
}
