#include "cli/chart.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <limits>

#include <fmt/format.h>

namespace trainyard::cli {

namespace {

constexpr double kPanelWidth = 270, kPanelHeight = 200;             // of the area between the axes
constexpr double kLeft = 58, kRight = 14, kTop = 30, kBottom = 44;  // around it
constexpr double kTitleHeight = 40, kLegendHeight = 34;             // of the whole
constexpr std::array<const char*, 6> kColours{"#440154", "#414487", "#2a788e", "#22a884", "#7ad151", "#d2b30c"};

std::string escaped(const std::string& text) {
  std::string out;
  for (const char c : text) {
    if (c == '&')
      out += "&amp;";
    else if (c == '<')
      out += "&lt;";
    else if (c == '>')
      out += "&gt;";
    else
      out += c;
  }
  return out;
}

// One of `count` along the palette.
const char* colour(std::size_t i, std::size_t count) {
  const std::size_t last = kColours.size() - 1;
  return kColours[count < 2 ? 0 : i * last / (count - 1)];
}

// 256, or 2⁻⁷.
std::string power_of_two(int exponent) {
  constexpr std::array<const char*, 10> kSuperscripts{"⁰", "¹", "²", "³", "⁴", "⁵", "⁶", "⁷", "⁸", "⁹"};
  if (exponent >= 0 && exponent < 20) return fmt::format("{}", 1 << exponent);
  std::string out = exponent < 0 ? "2⁻" : "2";
  for (const char digit : fmt::format("{}", std::abs(exponent)))
    out += kSuperscripts[static_cast<std::size_t>(digit - '0')];
  return out;
}

// An axis of one panel: values to [0, 1].
class Scale {
 public:
  Scale(const Axis& axis, const std::vector<Line>& lines, std::vector<double> Line::*values) : log_(axis.log2) {
    low_ = std::numeric_limits<double>::infinity();
    high_ = -low_;
    for (const Line& line : lines) {
      for (const double value : line.*values) {
        if (!shows(value)) continue;
        low_ = std::min(low_, at(value));
        high_ = std::max(high_, at(value));
      }
    }
    if (axis.min) low_ = at(*axis.min);
    if (axis.max) high_ = at(*axis.max);
    if (!(low_ <= high_)) low_ = 0, high_ = 1;
    const double room = high_ > low_ ? 0.04 * (high_ - low_) : 0.5;
    if (!axis.min) low_ -= room;
    if (!axis.max) high_ += room;
  }
  [[nodiscard]] bool shows(double value) const { return std::isfinite(value) && (!log_ || value > 0); }
  [[nodiscard]] double share(double value) const { return (at(value) - low_) / (high_ - low_); }
  // Where it is labelled: [value, label].
  [[nodiscard]] std::vector<std::pair<double, std::string>> ticks() const {
    double step = std::pow(10, std::floor(std::log10((high_ - low_) / 2)));
    if (log_) step = 1;
    while ((high_ - low_) / step > 6) step *= log_ || (high_ - low_) / step > 12 ? 2 : 2.5;
    std::vector<std::pair<double, std::string>> out;
    for (double i = std::ceil(low_ / step); i * step <= high_; ++i) {
      const double tick = i * step;
      if (log_)
        out.emplace_back(std::exp2(tick), power_of_two(static_cast<int>(tick)));
      else
        out.emplace_back(tick, fmt::format("{:.4g}", std::abs(tick) < step / 1e6 ? 0 : tick));
    }
    return out;
  }

 private:
  [[nodiscard]] double at(double value) const { return log_ ? std::log2(value) : value; }
  bool log_;
  double low_ = 0, high_ = 1;
};

class Drawing {
 public:
  Drawing(double width, double height) {
    text_ = fmt::format(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{0}\" height=\"{1}\" viewBox=\"0 0 {0} {1}\" "
        "font-family=\"sans-serif\" font-size=\"11\">\n<rect width=\"{0}\" height=\"{1}\" fill=\"white\"/>\n",
        width, height);
  }

  void label(double x, double y, const char* anchor, const std::string& label, const char* more = "") {
    text_ +=
        fmt::format("<text x=\"{:.1f}\" y=\"{:.1f}\" text-anchor=\"{}\" {}>{}</text>\n", x, y, anchor, more, label);
  }

  void stroke(double x0, double y0, double x1, double y1, const char* colour, double width) {
    text_ += fmt::format(
        "<line x1=\"{:.1f}\" y1=\"{:.1f}\" x2=\"{:.1f}\" y2=\"{:.1f}\" stroke=\"{}\" stroke-width=\"{}\"/>\n", x0, y0,
        x1, y1, colour, width);
  }

  void panel(const Panel& panel, double x, double y) {
    const Scale across(panel.x, panel.lines, &Line::x), up(panel.y, panel.lines, &Line::y);
    label(x + kPanelWidth / 2, y - 10, "middle", escaped(panel.title), "font-weight=\"bold\"");
    for (const auto& [value, text] : across.ticks()) {
      const double at = x + across.share(value) * kPanelWidth;
      stroke(at, y, at, y + kPanelHeight, "#e8e8e8", 1);
      label(at, y + kPanelHeight + 15, "middle", text);
    }
    for (const auto& [value, text] : up.ticks()) {
      const double at = y + (1 - up.share(value)) * kPanelHeight;
      stroke(x, at, x + kPanelWidth, at, "#e8e8e8", 1);
      label(x - 6, at + 4, "end", text);
    }
    label(x + kPanelWidth / 2, y + kPanelHeight + 32, "middle", escaped(panel.x.label));
    const std::string turned = fmt::format("transform=\"rotate(-90 {:.1f} {:.1f})\"", x - 42, y + kPanelHeight / 2);
    label(x - 42, y + kPanelHeight / 2, "middle", escaped(panel.y.label), turned.c_str());
    text_ += fmt::format(
        "<clipPath id=\"panel{0}\"><rect x=\"{1:.1f}\" y=\"{2:.1f}\" width=\"{3}\" height=\"{4}\"/></clipPath>\n"
        "<g clip-path=\"url(#panel{0})\">\n",
        panels_++, x, y, kPanelWidth, kPanelHeight);
    for (std::size_t i = 0; i < panel.lines.size(); ++i) {
      curve(panel.lines[i], across, up, x, y, colour(i, panel.lines.size()));
    }
    text_ += fmt::format(
        "</g>\n<rect x=\"{:.1f}\" y=\"{:.1f}\" width=\"{}\" height=\"{}\" fill=\"none\" stroke=\"#888\"/>\n", x, y,
        kPanelWidth, kPanelHeight);
  }

  void legend(const std::vector<Line>& lines, double x, double y) {
    for (std::size_t i = 0; i < lines.size(); ++i) {
      stroke(x, y - 4, x + 18, y - 4, colour(i, lines.size()), 2);
      label(x + 23, y, "start", escaped(lines[i].name));
      x += 42 + 6.5 * static_cast<double>(lines[i].name.size());
    }
  }

  std::string finish() { return text_ + "</svg>\n"; }

 private:
  void curve(const Line& line, const Scale& across, const Scale& up, double x, double y, const char* colour) {
    std::string path;
    bool open = false;
    for (std::size_t i = 0; i < std::min(line.x.size(), line.y.size()); ++i) {
      const bool shows = across.shows(line.x[i]) && up.shows(line.y[i]);
      if (shows) {
        const double px = x + across.share(line.x[i]) * kPanelWidth;
        const double py = y + (1 - up.share(line.y[i])) * kPanelHeight;
        path += fmt::format("{}{:.1f} {:.1f}", open ? " L" : " M", px, py);
        text_ += fmt::format("<circle cx=\"{:.1f}\" cy=\"{:.1f}\" r=\"{}\" fill=\"{}\"/>\n", px, py,
                             line.mark == i ? 5 : 2, colour);
      }
      open = shows;
    }
    if (line.points_only) return;
    text_ += fmt::format("<path d=\"{}\" fill=\"none\" stroke=\"{}\" stroke-width=\"1.6\"/>\n", path, colour);
  }

  std::string text_;
  int panels_ = 0;
};

}  // namespace

std::string chart_svg(const std::string& title, const std::vector<Panel>& panels, std::size_t columns) {
  const double cell_width = kLeft + kPanelWidth + kRight, cell_height = kTop + kPanelHeight + kBottom;
  const double rows = std::ceil(static_cast<double>(panels.size()) / static_cast<double>(columns));
  const double width = cell_width * static_cast<double>(columns),
               height = kTitleHeight + rows * cell_height + kLegendHeight;
  Drawing drawing(width, height);
  drawing.label(width / 2, 25, "middle", escaped(title), "font-size=\"14\"");
  for (std::size_t i = 0; i < panels.size(); ++i) {
    drawing.panel(panels[i], static_cast<double>(i % columns) * cell_width + kLeft,
                  kTitleHeight + static_cast<double>(i / columns) * cell_height + kTop);
  }
  if (!panels.empty()) drawing.legend(panels.front().lines, kLeft, height - 12);
  return drawing.finish();
}

}  // namespace trainyard::cli
