// Draws the charts that the page describes in <script id="charts" type="application/json">: a list
// of {kind, title, xLabel, yLabel, logX, logY, stepped, categories, series: [{name, x, y, dashed}]};
// a series may have low and high, the ends of an interval around each y.
(function () {
  "use strict";
  const root = document.documentElement;
  const dark = window.matchMedia("(prefers-color-scheme: dark)");
  // Okabe and Ito's colours, told apart with the usual colour blindnesses; lighter ones on dark.
  const palettes = {
    light: ["#0072b2", "#d55e00", "#009e73", "#cc79a7", "#7a5c00", "#3b8fc4", "#6f4aa8", "#4d4d4d"],
    dark: ["#56b4e9", "#ff8c42", "#2fc79a", "#e79bc6", "#f0e442", "#9ecbff", "#b79bf0", "#c7c7c7"],
  };
  // Filled ones: they show in the legend whatever the border is.
  const shapes = ["circle", "rect", "triangle", "rectRot", "rectRounded"];
  const charts = [];

  function style(name) {
    return getComputedStyle(root).getPropertyValue(name).trim();
  }

  function shortNumber(value) {
    const size = Math.abs(value);
    if (value === 0) return "0";
    if (size < 1e-3 || size >= 1e6) return value.toExponential(0).replace("e+", "e");
    if (size >= 1000) return value.toLocaleString("en");
    return String(Number(value.toPrecision(3)));
  }

  // Ticks of a logarithmic axis: the fewest mantissas that give four, powers of ten alone where it
  // spans many. Within a small part of a decade none do, and equal steps are as good.
  function logTicks(low, high) {
    for (const mantissas of [[1], [1, 2, 5], [1, 1.5, 2, 3, 4, 5, 7]]) {
      const ticks = [];
      const end = Math.floor(Math.log10(high));
      for (let power = Math.floor(Math.log10(low)); power <= end; ++power) {
        for (const mantissa of mantissas) {
          const value = Number(mantissa + "e" + power);
          if (value >= low && value <= high) ticks.push(value);
        }
      }
      const every = Math.ceil(ticks.length / 12);
      if (ticks.length >= 4) return ticks.filter((value, i) => i % every === 0);
    }
    const rough = (high - low) / 5;
    const unit = Math.pow(10, Math.floor(Math.log10(rough)));
    const step = [1, 2, 5, 10].map((m) => m * unit).find((size) => size >= rough);
    const ticks = [];
    for (let i = Math.ceil(low / step); i * step <= high; ++i) {
      ticks.push(Number((i * step).toPrecision(12)));
    }
    return ticks;
  }

  // Ends of a logarithmic axis that leave room on both sides of its points.
  function logEnds(chart) {
    const values = chart.series.flatMap((series) => series.x).filter((x) => x > 0);
    if (values.length === 0) return {};
    const low = Math.min(...values);
    const high = Math.max(...values);
    const room = Math.max(Math.pow(high / low, 0.06), 1.1);
    return { min: low / room, max: high * room };
  }

  function points(chart, series) {
    const usable = (y) => y !== null && (!chart.logY || y > 0);
    if (chart.kind === "bar") return series.y.map((y) => (usable(y) ? y : null));
    return series.x.map((x, i) => ({ x: x, y: usable(series.y[i]) ? series.y[i] : null }));
  }

  // A bar with ends from low to high through each point.
  const intervals = {
    id: "intervals",
    beforeDatasetsDraw(chart) {
      const draw = chart.ctx;
      chart.data.datasets.forEach((set, index) => {
        if (!set.low || !chart.isDatasetVisible(index)) return;
        draw.save();
        draw.strokeStyle = set.borderColor;
        draw.globalAlpha = 0.75;
        draw.lineWidth = 1.5;
        chart.getDatasetMeta(index).data.forEach((point, i) => {
          const top = chart.scales.y.getPixelForValue(set.high[i]);
          const bottom = chart.scales.y.getPixelForValue(set.low[i]);
          draw.beginPath();
          draw.moveTo(point.x, top);
          draw.lineTo(point.x, bottom);
          for (const y of [top, bottom]) {
            draw.moveTo(point.x - 4, y);
            draw.lineTo(point.x + 4, y);
          }
          draw.stroke();
        });
        draw.restore();
      });
    },
  };

  // Marks with intervals that would cover each other stand side by side: equal bytes and equal
  // shares are what a comparison is about.
  const apart = {
    id: "apart",
    afterUpdate(chart) {
      const size = 12;
      const points = chart.data.datasets.flatMap((set, index) =>
        set.low && chart.isDatasetVisible(index) ? chart.getDatasetMeta(index).data : []);
      const groups = [];
      for (const point of points) {
        const group = groups.find((one) =>
          Math.abs(one[0].x - point.x) < size && Math.abs(one[0].y - point.y) < size);
        if (group) group.push(point);
        else groups.push([point]);
      }
      for (const group of groups.filter((one) => one.length > 1)) {
        const middle = group.reduce((sum, point) => sum + point.x, 0) / group.length;
        group.forEach((point, i) => (point.x = middle + (i - (group.length - 1) / 2) * size));
      }
    },
  };

  // What a test sees of a chart: the labels of its axis and where the marks stand, in pixels.
  function describe(chart) {
    const marks = chart.data.datasets.flatMap((set, index) =>
      set.low ? chart.getDatasetMeta(index).data : []);
    const data = chart.canvas.dataset;
    data.ticks = chart.scales.x.ticks.map((tick) => tick.label).join(" ");
    data.marks = marks.map((mark) => Math.round(mark.x) + "," + Math.round(mark.y)).join(" ");
  }

  function tooltipText(item) {
    const set = item.dataset;
    const text = set.label + ": " + Number(item.parsed.y).toPrecision(4);
    if (!set.low) return text;
    const ends = [set.low, set.high].map((list) => Number(list[item.dataIndex]).toPrecision(4));
    return text + " [" + ends.join(", ") + "] at " + shortNumber(item.parsed.x);
  }

  function dataset(chart, series, index) {
    const many = chart.kind === "line" && series.y.length > 80;
    return {
      label: series.name,
      low: series.low,
      high: series.high,
      data: points(chart, series),
      borderWidth: chart.kind === "line" ? 2 : 0,
      borderDash: series.dashed ? [6, 4] : [],
      pointStyle: chart.kind === "bar" ? "rect" : shapes[index % shapes.length],
      pointRadius: many ? 0 : series.low ? 5 : 3,
      stepped: chart.stepped ? "before" : false,
      tension: 0,
    };
  }

  function axis(chart, name) {
    const log = name === "x" ? chart.logX : chart.logY;
    const result = {
      title: { display: true, text: name === "x" ? chart.xLabel : chart.yLabel },
      ticks: {},
      grid: {},
      border: {},
    };
    if (name === "x" && chart.kind === "bar") return Object.assign(result, { type: "category" });
    result.type = log ? "logarithmic" : "linear";
    result.ticks.callback = shortNumber;
    if (name === "x" && log && !chart.series[0].low) {
      // One tick at each measured value: they are few and far apart.
      const values = chart.series[0].x;
      result.afterBuildTicks = (scale) => (scale.ticks = values.map((value) => ({ value: value })));
      result.ticks.autoSkip = false;
    } else if (log) {
      if (name === "x") Object.assign(result, logEnds(chart));
      result.afterBuildTicks = (scale) =>
        (scale.ticks = logTicks(scale.min, scale.max).map((value) => ({ value: value })));
      result.ticks.autoSkip = false;
    } else if (name === "y") {
      result.beginAtZero = true;
    }
    return result;
  }

  // Lines of a title that fit a narrow screen.
  function wrap(title) {
    const most = Math.max(24, Math.floor(root.clientWidth / 9));
    const lines = [""];
    for (const word of title.split(" ")) {
      const last = lines[lines.length - 1];
      if (last !== "" && last.length + 1 + word.length > most) lines.push(word);
      else lines[lines.length - 1] = last === "" ? word : last + " " + word;
    }
    return lines;
  }

  // Long names lose their middle in the legend, not their ends.
  function legendLabels(chart) {
    const most = Math.max(24, Math.floor(root.clientWidth / 9));
    const labels = window.Chart.defaults.plugins.legend.labels.generateLabels(chart);
    for (const label of labels) {
      if (label.text.length <= most) continue;
      const half = Math.floor((most - 1) / 2);
      label.text = label.text.slice(0, half) + "\u2026" + label.text.slice(-half);
    }
    return labels;
  }

  function config(chart) {
    return {
      type: chart.kind,
      plugins: [apart, intervals],
      data: {
        labels: chart.kind === "bar" ? chart.categories : undefined,
        datasets: chart.series.map((series, index) => dataset(chart, series, index)),
      },
      options: {
        animation: false,
        maintainAspectRatio: false,
        interaction: { mode: "nearest", axis: "x", intersect: false },
        scales: { x: axis(chart, "x"), y: axis(chart, "y") },
        plugins: {
          title: { display: true, text: wrap(chart.title), font: { size: 15 } },
          legend: {
            position: "bottom",
            labels: { usePointStyle: true, generateLabels: legendLabels },
          },
          tooltip: {
            callbacks: {
              label: tooltipText,
            },
          },
        },
      },
    };
  }

  // Colours of the page at this moment, on a chart or on the description of one.
  function paint(data, options) {
    const palette = dark.matches ? palettes.dark : palettes.light;
    const text = style("--text");
    data.datasets.forEach((set, index) => {
      set.borderColor = palette[index % palette.length];
      set.backgroundColor = set.borderColor;
    });
    options.plugins.title.color = text;
    options.plugins.legend.labels.color = text;
    for (const name of ["x", "y"]) {
      const scale = options.scales[name];
      scale.title.color = style("--muted");
      scale.ticks.color = style("--muted");
      scale.grid.color = style("--line");
      scale.border.color = style("--muted");
    }
  }

  const descriptions = JSON.parse(document.getElementById("charts").textContent);
  descriptions.forEach((description, index) => {
    const settings = config(description);
    paint(settings.data, settings.options);
    const chart = new window.Chart(document.getElementById("chart-" + index), settings);
    charts.push(chart);
    describe(chart);
  });
  dark.addEventListener("change", () => {
    charts.forEach((chart) => {
      paint(chart.config.data, chart.config.options);
      chart.update();
    });
  });
  if (root.dataset.error === undefined) root.dataset.rendered = "true";
})();
