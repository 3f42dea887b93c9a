"use strict";
/** Fills the charts and their choices from the data blocks of the page. What stored runs hold is only ever set as text. */
(() => {
  const blocks = (kind) => [...document.querySelectorAll(`script.${kind}`)].map((each) => JSON.parse(each.textContent));
  const [settings] = blocks("settings");

  // How numbers are shown: as attnbench.units.shown.
  const digits = (value) => Number(value.toPrecision(3));
  const three = (value) => {
    const size = Math.abs(value);
    if (size && (size >= 1e6 || size < 1e-3)) return value.toExponential(2).replace(/e([+-])(\d)$/, "e$10$2");
    if (digits(size) >= 100) return (size < 1000 ? digits(value) : value).toFixed(0);
    return value.toFixed(digits(size) < 10 ? 2 : 1);
  };
  const shown = (value, unit) => {
    if (!value) return "0";
    const [base, steps] = settings.units[unit];
    const fits = (scaled) => Math.max(scaled, digits(scaled)) < base;
    const step = steps.find(([power]) => fits(value / base ** power)) ?? steps[steps.length - 1];
    return three(value / base ** step[0]) + step[1];
  };
  const times = (value) => (value >= 1e-3 && value < 0.1 ? String(Number(value.toPrecision(2))) : three(value)) + "×";
  const tick = (value, unit) => (unit === "×" ? times(value) : shown(value, unit)).replace(/\.0+(?=\D|$)/, "");

  /** The ends of a logarithmic scale with some room, and its ticks: 1, 2 and 5 of each decade, of bytes and ratios powers of 2. */
  const scale = (values, share, unit) => {
    const [least, most] = [Math.min(...values), Math.max(...values)];
    const pad = Math.max((most / least) ** share, 1.05);
    const domain = [least / pad, most * pad];
    const isBytes = unit === "bytes" || unit === "×";
    const [low, high] = domain.map((end) => (isBytes ? Math.log2(end) : Math.log10(end)));
    const inner = isBytes ? (unit === "×" && high - low < 3 ? [1, 1.5] : [1]) : high - low > 5 ? [1] : high - low > 2 ? [1, 3] : [1, 2, 5];
    const every = [];
    for (let k = Math.floor(low); k <= high; k++) inner.forEach((n) => every.push(Number((n * (isBytes ? 2 : 10) ** k).toPrecision(12))));
    const inside = every.filter((tick) => tick >= domain[0] && tick <= domain[1]);
    const step = Math.ceil(inside.length / 12);
    const ticks = inside.filter((_, i) => i % step === 0);
    return { domain, ticks, labels: Object.fromEntries(ticks.map((t) => [t, tick(t, unit)])) };
  };

  const element = (name, properties = {}, ...children) => {
    const made = Object.assign(document.createElement(name), properties);
    made.append(...children);
    return made;
  };

  // One box of text for all charts.
  const box = element("div", { className: "tip", hidden: true });
  document.body.append(box);
  const tooltip = (_, event, item, value) => {
    const text = value && (item?.datum?.tip ?? item?.datum?.datum?.tip);  // where the nearest point is meant, within it
    box.hidden = !text;
    if (box.hidden) return;
    box.textContent = text;
    const left = Math.min(event.clientX + 14, window.innerWidth - box.offsetWidth - 8);
    const top = Math.min(event.clientY + 14, window.innerHeight - box.offsetHeight - 8);
    box.style.left = `${Math.max(4, left)}px`;
    box.style.top = `${Math.max(4, top)}px`;
  };

  const css = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
  const dark = window.matchMedia("(prefers-color-scheme: dark)");
  const config = () => {
    const [text, soft, line] = ["--text", "--soft", "--line"].map(css);
    const axis = { labelColor: soft, labelFontSize: 12, titleColor: soft, domainColor: line, tickColor: line, gridColor: line, gridOpacity: 0.6 };
    return { axis, title: { color: text }, background: null, font: "system-ui, sans-serif" };
  };

  /** A chart in a place; `fill(view)` sets its data and signals, again where the colours of the page change. */
  const chart = (kind, place, fill) => {
    let shownView = null;
    const drawing = element("div", { ariaHidden: "true" });  // the place has a label, its marks need none
    place.append(drawing);
    const draw = async () => {
      const options = { mode: "vega-lite", actions: false, renderer: "svg", ast: true, tooltip, config: config() };
      const { view } = await vegaEmbed(drawing, settings.charts[kind], options);
      shownView?.finalize();
      shownView = view;
      return update();
    };
    const update = () => {
      fill(shownView);
      return shownView.resize().runAsync();
    };
    dark.addEventListener("change", draw);
    draw();
    return () => shownView && update();
  };

  const set = (view, axis, values) => {
    for (const [name, value] of Object.entries(values)) view.signal(name + axis, value);
  };

  const unique = (values) => [...new Set(values)];
  const choice = (title, name, onchange) => {
    const select = element("select", { name });
    select.addEventListener("change", () => onchange(select.value));
    const label = element("label", {}, element("span", { textContent: title }), select);
    const fill = (values, value) => {
      select.replaceChildren(...values.map(([text, v]) => element("option", { textContent: text, value: v, selected: v === value })));
      label.hidden = values.length < 2;
    };
    return { label, fill };
  };

  const MODES = { fwd: "inference (fwd)", fwd_bwd: "training (fwd_bwd)" };
  /** The height of a curve at a place, interpolated in logs. */
  const height = (points, x) => {
    const i = Math.min(Math.max(points.findIndex((p) => p.x >= x), 1), points.length - 1);
    const [a, b] = [points[i - 1] ?? points[0], points[i] ?? points[0]];
    if (!a || a.x === b.x) return a?.y;
    const share = Math.log(x / a.x) / Math.log(b.x / a.x);
    return a.y * (b.y / a.y) ** share;
  };

  /** A piece of the line of a curve. */
  const swatch = (s) => {
    const [image, line] = ["svg", "line"].map((name) => document.createElementNS("http://www.w3.org/2000/svg", name));
    const set = { x1: 0, x2: 24, y1: 4, y2: 4, stroke: s.colour || "currentColor", "stroke-width": 3, "stroke-dasharray": s.dash[1] ? s.dash.join(" ") : "none" };
    Object.entries(set).forEach(([name, value]) => line.setAttribute(name, value));
    Object.entries({ width: 24, height: 8, "aria-hidden": true }).forEach(([name, value]) => image.setAttribute(name, value));
    image.append(line);
    return image;
  };

  /** A button; `pressed`: whether it is, null where it has no state. */
  const pressable = (text, pressed, onclick) => {
    const made = element("button", { type: "button", onclick }, text);
    if (pressed !== null) made.setAttribute("aria-pressed", String(pressed));
    return made;
  };

  const curves = (figure, panels) => {
    const state = { mode: panels[0].mode, rest: panels[0].rest, metric: panels[0].metrics[0].name, view: "value", against: "" };
    const visible = new Map();
    panels.forEach((p) => p.series.forEach((s) => visible.has(s.name) || visible.set(s.name, s.shown)));
    const first = new Map(visible);
    const ink = () => css("--text");

    const panel = () => panels.find((p) => p.mode === state.mode && p.rest === state.rest);
    const metric = () => panel().metrics.find((m) => m.name === state.metric);
    const against = () => metric().against.find((a) => a.name === state.against);

    /** Chooses what there is, nearest to what was chosen. */
    const settle = (changed) => {
      if (!panel()) {
        const near = panels.find((p) => p[changed] === state[changed]) ?? panels[0];
        Object.assign(state, { mode: near.mode, rest: near.rest });
      }
      if (!metric()) state.metric = panel().metrics[0].name;
      if (!against()) state.against = metric().against[0]?.name ?? "";
      if (!against()) state.view = "value";
    };

    const rows = () => {
      const p = panel(), m = metric(), a = against(), isRatio = state.view === "ratio";
      const place = (i) => p.sizes[i][0];
      const points = [], marks = [];
      p.series.forEach((s, k) => {
        if (!visible.get(s.name)) return;
        const colour = s.colour || ink();
        const ratios = new Map((a?.ratios[k] ?? []).map(([i, r, f]) => [i, [i, r, f && r / f, f && r * f]]));
        const interval = (low, high, text) => (low && high && low !== high ? ` [${text(low)}, ${text(high)}]` : "");
        const tip = ([i, value, low, high]) => {
          const r = ratios.get(i);
          const lines = [s.name, `${p.sizes[i][1]} ${p.unit}`, `${m.title}: ${shown(value, m.unit)}${interval(low, high, (v) => shown(v, m.unit))}`];
          if (r) lines.push(`${times(r[1])}${interval(r[2], r[3], times)} of ${a.name}`);
          return lines.join("\n");
        };
        const mine = m.figures[k]
          .map((f) => ({ f, r: isRatio ? ratios.get(f[0]) : f }))
          .filter(({ r }) => r)
          .map(({ f, r }) => ({ series: s.name, x: place(f[0]), y: r[1], low: r[2], high: r[3], colour, dash: s.dash, tip: tip(f) }));
        points.push(...mine);
        if (!mine.length) return;
        const last = mine[mine.length - 1];
        if (m.lost[k]) marks.push({ series: s.name, x: last.x, y: last.y, low: null, high: null, colour, shape: "cross", tip: `${s.name}\n${m.lost[k]}` });
        (a?.crossings[k] ?? []).forEach(([at, low, high]) => {
          const x = at ?? Math.sqrt(low * high);
          const y = isRatio ? 1 : height(mine, x);
          marks.push({ series: s.name, x: at, y, low: low ?? at, high: high ?? at, colour, shape: "circle", tip: `${s.name}\ncheaper than ${a.name}:\n${a.texts[k]}` });
        });
      });
      const beneath = !a ? [] : isRatio
        ? p.sizes.map(([x]) => ({ x, y: 1, colour: ink() }))
        : a.values.map(([i, y]) => ({ x: place(i), y, colour: ink() }));
      return { points, marks, beneath };
    };

    const update = (view) => {
      const p = panel(), { points, marks, beneath } = rows();
      const heights = [...points.flatMap((d) => [d.y, d.low ?? d.y, d.high ?? d.y]), ...beneath.map((d) => d.y)].filter((v) => v > 0);
      const unit = state.view === "ratio" ? "×" : metric().unit;
      const x = scale(p.sizes.map(([size]) => size), 0.03, "");
      set(view, "X", { ...x, ticks: p.sizes.map(([size]) => size), labels: Object.fromEntries(p.sizes) });
      set(view, "Y", scale(heights.length ? heights : [1, 10], 0.05, unit));
      view.data("points", points).data("marks", marks).data("beneath", beneath);
    };

    const choices = {
      mode: choice("Mode", "mode", (v) => change("mode", v)),
      rest: choice("Problem", "rest", (v) => change("rest", v)),
      metric: choice("Metric", "metric", (v) => change("metric", v)),
      against: choice("Compared with", "against", (v) => change("against", v)),
      view: choice("Shown as", "view", (v) => change("view", v)),
    };
    const legend = element("div", { className: "legend" });
    legend.setAttribute("role", "group");
    legend.setAttribute("aria-label", "Operators in the chart");
    const plot = element("div", { className: "plot" });
    plot.setAttribute("role", "img");
    const caption = element("figcaption");
    figure.append(element("div", { className: "choices" }, ...Object.values(choices).map((c) => c.label)), plot, legend, caption);
    figure.hidden = false;

    const describe = () => {
      const p = panel(), m = metric();
      choices.mode.fill(unique(panels.map((q) => q.mode)).map((v) => [MODES[v] ?? v, v]), state.mode);
      choices.rest.fill(unique(panels.map((q) => q.rest)).map((v) => [v, v]), state.rest);
      choices.metric.fill(p.metrics.map((q) => [q.title, q.name]), state.metric);
      choices.against.fill(m.against.map((q) => [q.name, q.name]), state.against);
      choices.view.fill(m.against.length ? [["values", "value"], [`ratio to ${state.against}`, "ratio"]] : [["values", "value"]], state.view);
      plot.setAttribute("aria-label", `${figure.dataset.label}: ${m.title}${state.view === "ratio" ? `, ratio to ${state.against}` : ""}. The tables below hold the figures.`);
      const mark = m.against.length ? ` Thick line: ${state.against}; rings with bars: where a series passes it, with the 95 % interval.` : "";
      const lost = m.lost.some(Boolean) ? " Crosses: out of memory or time beyond." : "";
      caption.textContent = `${m.title} over ${figure.dataset.group}, ${p.rest}. Bands: 95 % intervals.${mark}${lost}`;
      const focused = [...legend.children].indexOf(document.activeElement);
      const reset = (value) => () => (panels.forEach((q) => q.series.forEach((s) => visible.set(s.name, value(s.name)))), refresh());
      legend.replaceChildren(
        ...p.series.map((s) => {
          const made = pressable(s.name, visible.get(s.name), () => (visible.set(s.name, !visible.get(s.name)), refresh()));
          made.prepend(swatch(s));
          return made;
        }),
        pressable("All", null, reset(() => true)),
        pressable("None", null, reset(() => false)),
        pressable("As at first", null, reset((name) => first.get(name))),
      );
      legend.children[focused]?.focus();
    };

    settle("mode");
    const redraw = chart("curves", plot, update);
    const refresh = () => (describe(), redraw());
    const change = (name, value) => ((state[name] = value), settle(name), refresh());
    describe();
  };

  const map = (figure, [grid]) => {
    const plot = element("div", { className: "plot" });
    plot.setAttribute("role", "img");
    plot.setAttribute("aria-label", `${figure.dataset.label}. ${grid.caption} The tables below say the same.`);
    const sides = grid.borders.some((b) => b.side === 1) ? `${grid.sides[0]} (upper, solid) and ${grid.sides[1]} (lower, dashed)` : grid.sides[0];
    figure.append(plot, element("figcaption", { textContent: `${grid.caption} Passed: ${sides}. Across: ${grid.axis}; down: ${grid.over}.` }));
    figure.hidden = false;
    chart("map", plot, (view) => {
      const [ink, [least, most]] = [css("--text"), grid.domain];
      set(view, "X", { domain: grid.domain, ticks: grid.sizes.map(([size]) => size), labels: Object.fromEntries(grid.sizes) });
      view.signal("rows", grid.rows).height(44 * grid.rows.length);
      view.data("cells", grid.cells.map((cell) => ({ ...cell, colour: cell.colour || css("--raised"), opacity: cell.opacity || 1, ink })));
      view.data("borders", grid.borders.map((b) => ({ ...b, low: b.low ?? least, high: b.high ?? most, colour: ink })));
    });
  };

  /** Our curves over the axis of a paper's figure, with its printed numbers. */
  const paperFigure = (figure, [data]) => {
    const plot = element("div", { className: "plot" });
    plot.setAttribute("role", "img");
    plot.setAttribute("aria-label", `${figure.dataset.label}. The table below holds the paper's numbers.`);
    const names = data.curves.map((c) => element("span", {}, swatch(c), c.name));
    figure.append(
      element("p", { className: "plot-title", textContent: `${data.title} (${data.place})` }), plot,
      element("div", { className: "names" }, ...names), element("figcaption", { textContent: data.caption }),
    );
    figure.hidden = false;
    const text = (value) => (data.unit === "×" ? times(value) : shown(value, data.unit));
    const interval = (low, high) => (low && high ? ` [${text(low)}, ${text(high)}]` : "");
    chart("figure", plot, (view) => {
      const ink = css("--text");
      const points = [], printed = [], labels = Object.fromEntries(data.sizes);
      data.curves.forEach((c) => {
        const colour = c.colour || ink;
        c.points.forEach(([x, y, low, high]) => points.push({
          series: c.name, x, y, low: low ?? y, high: high ?? y, colour, dash: c.dash, tip: `${c.name}\n${data.over} ${labels[x]}: ${text(y)}${interval(low, high)}`,
        }));
        c.printed.forEach((p) => printed.push({ ...p, colour, fill: p.filled ? colour : "transparent", tip: `${c.name}\n${p.tip}` }));
      });
      const ends = [...points.flatMap((d) => [d.y, d.low, d.high]), ...printed.map((d) => d.y), ...(data.limit ? [data.limit] : [])];
      const sizes = data.sizes.map(([size]) => size);
      set(view, "X", { ...scale([...sizes, ...printed.map((d) => d.x)], 0.03, ""), ticks: sizes, labels });
      set(view, "Y", scale(ends.filter((v) => v > 0), 0.05, data.unit));
      view.data("points", points).data("printed", printed).data("limit", data.limit ? [{ y: data.limit, colour: ink }] : []);
    });
  };

  const HUES = { worse: "#d55e00", better: "#1f9e77", changed: "#9b6bd3", undecided: "#8a8f98", same: "#4a90d9" };
  const GROUPS = { slower: "worse", more: "worse", faster: "better", less: "better" };
  const MOST_ROWS = 40;

  const findings = (figure, chunks) => {
    const all = chunks.flatMap((chunk) => chunk.findings);
    const metrics = unique(all.map((f) => f.metric));
    const state = { metric: metrics[0], verdict: "" };
    const chosen = () => all.filter((f) => f.metric === state.metric && (!state.verdict || f.verdict === state.verdict));
    const hue = (f) => HUES[GROUPS[f.verdict] ?? f.verdict];
    const [changes, pairs] = ["plot", "plot"].map((className) => element("div", { className }));
    const caption = element("figcaption");
    const choices = {
      metric: choice("Metric", "metric", (v) => change("metric", v)),
      verdict: choice("Verdict", "verdict", (v) => change("verdict", v)),
    };
    const heading = (text) => element("p", { className: "plot-title", textContent: text });
    figure.append(
      element("div", { className: "choices" }, ...Object.values(choices).map((c) => c.label)),
      heading("After / before"), changes, heading("Before and after"), pairs, caption,
    );
    figure.hidden = false;
    const describe = () => {
      const verdicts = unique(all.filter((f) => f.metric === state.metric).map((f) => f.verdict));
      if (!verdicts.includes(state.verdict)) state.verdict = "";
      choices.metric.fill(metrics.map((v) => [v, v]), state.metric);
      choices.verdict.fill([["all", ""], ...verdicts.map((v) => [v, v])], state.verdict);
      const rows = chosen();
      const more = rows.length > MOST_ROWS ? `, the first ${MOST_ROWS} of ${rows.length} by importance` : "";
      const words = `${state.metric}, ${state.verdict || "all verdicts"}`;
      [[changes, "After / before"], [pairs, "Before and after"]].forEach(([plot, what]) => {
        plot.setAttribute("role", "img");
        plot.setAttribute("aria-label", `${what}: ${words}. The tables below hold the figures.`);
      });
      caption.textContent = `${words}${more}. Bars: intervals; upright marks: the gate's threshold. Orange: worse, green: better, blue: the same, grey: undecided, violet: changed.`;
    };
    const drawn = (f) => ({ ...f, colour: hue(f), ink: css("--text") });
    const drawChanges = chart("changes", changes, (view) => {
      const rows = chosen().slice(0, MOST_ROWS);
      const ends = rows.flatMap((f) => [f.ratio, f.low ?? f.ratio, f.high ?? f.ratio, f.limit ?? 1]).filter((v) => v > 0);
      set(view, "X", around(ends.length ? [1, ...ends] : [0.9, 1.1]));
      view.signal("rows", rows.map((f) => f.name)).height(20 * Math.max(rows.length, 2));
      view.data("findings", rows.map(drawn)).data("one", [{ ratio: 1, colour: css("--soft") }]);
    });
    const drawPairs = chart("before-after", pairs, (view) => {
      const rows = chosen().filter((f) => f.before > 0 && f.after > 0);
      const ends = rows.flatMap((f) => [f.before, f.after]);
      const both = scale(ends.length ? ends : [1, 10], 0.05, rows[0]?.unit ?? "");
      ["X", "Y"].forEach((axis) => set(view, axis, both));
      view.data("findings", rows.map(drawn));
      view.data("same", both.domain.map((v) => ({ before: v, after: v, colour: css("--soft") })));
    });
    const change = (name, value) => ((state[name] = value), describe(), drawChanges(), drawPairs());
    describe();
  };

  /** A scale of ratios near 1, with ticks in per cent; of wider ones as of any ratio. */
  const around = (values) => {
    const [least, most] = [Math.min(...values), Math.max(...values)];
    if (most > 2 || least < 0.5) return scale([least, most], 0.05, "×");
    const reach = Math.max(most, 1 / least) - 1 || 0.01;
    const step = [0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5].find((each) => reach / each <= 4) ?? 0.5;
    const ticks = [];
    for (let k = -4; k <= 4; k++) if (1 + k * step > 0) ticks.push(Number((1 + k * step).toFixed(4)));
    const label = (t) => (t === 1 ? "same" : `${t > 1 ? "+" : "−"}${Number((Math.abs(t - 1) * 100).toFixed(1))}%`);
    const domain = [Math.min(least, 1) * (1 - reach / 20), Math.max(most, 1) * (1 + reach / 20)];
    const inside = ticks.filter((t) => t >= domain[0] && t <= domain[1]);
    return { domain, ticks: inside, labels: Object.fromEntries(inside.map((t) => [t, label(t)])) };
  };

  const EVIDENCE = { exact: "square", paired: "diamond", unpaired: "circle" };

  /** Figures from run to run; `panels`: one metric of one panel each. */
  const runsChart = (figure, panels) => {
    const [{ runs }] = blocks("runs");
    const views = (p) => (p.beside ? [["beside the block", "beside"], ["values", "value"]] : [["values", "value"]]);
    const state = { metric: panels[0].metric, rest: panels[0].rest, size: "", view: views(panels[0])[0][1] };
    const panel = () => panels.find((p) => p.metric === state.metric && p.rest === state.rest);
    const visible = new Map();
    panels.forEach((p) => p.tracks.forEach((t) => visible.has(t.series) || visible.set(t.series, t.shown)));
    const drawn = () => panel().tracks.filter((t) => visible.get(t.series) && (state.size ? t.label === state.size : t.largest));
    const settle = () => {
      if (!panel()) state.rest = panels.find((p) => p.metric === state.metric).rest;
      if (!panel().sizes.includes(state.size)) state.size = "";
      if (!views(panel()).some(([, v]) => v === state.view)) state.view = "value";
    };

    const rows = () => {
      const p = panel(), isBeside = state.view === "beside", points = [], marks = [];
      drawn().forEach((t) => {
        const colour = t.colour || css("--text"), name = `${t.series} ${t.label}`;
        const own = t.points.filter((q) => q[isBeside ? 4 : 1] > 0).map(([run, value, low, high, beside]) => {
          const interval = low && high && low !== high ? ` [${shown(low, p.unit)}, ${shown(high, p.unit)}]` : "";
          const lines = [name, runs[run].text, shown(value, p.unit) + interval, ...(beside ? [`${times(beside)} of its middle, beside the block`] : [])];
          const ends = isBeside ? { y: beside, low: null, high: null } : { y: value, low, high };
          return { run, x: run + 1, ...ends, colour, dash: t.dash, line: `${name} ${runs[run].line}`, tip: lines.join("\n") };
        });
        points.push(...own);
        t.changes.forEach(([run, evidence, verdict, text]) => {
          const at = own.find((q) => q.run === run);
          const hue = HUES[evidence === "unpaired" ? "undecided" : GROUPS[verdict] ?? "changed"];
          if (at) marks.push({ x: at.x, y: at.y, shape: EVIDENCE[evidence], colour: hue, tip: [name, runs[run].text, text].join("\n") });
        });
      });
      const used = points.map((q) => q.run);
      const [first, last] = [Math.min(...used), Math.max(...used)];
      const borders = runs.flatMap((r, i) => (r.border && i > first && i <= last ? [{ x: i + 0.5, colour: css("--soft"), tip: r.border }] : []));
      return { points, marks, borders };
    };

    const update = (view) => {
      const { points, marks, borders } = rows();
      const heights = points.flatMap((d) => [d.y, d.low ?? d.y, d.high ?? d.y]).filter((v) => v > 0);
      const used = unique(points.map((d) => d.run)).sort((a, b) => a - b);
      const domain = used.length ? [used[0] + 0.5, used[used.length - 1] + 1.5] : [0, 1];
      const step = Math.ceil(used.length / 8) || 1;
      const ticks = used.filter((_, i) => i % step === 0).map((run) => run + 1);
      set(view, "X", { domain, ticks, labels: Object.fromEntries(ticks.map((t) => [t, runs[t - 1].day])) });
      set(view, "Y", state.view === "beside" ? around(heights.length ? [1, ...heights] : [0.9, 1.1]) : scale(heights.length ? heights : [1, 10], 0.05, panel().unit));
      view.data("points", points).data("marks", marks).data("borders", borders);
    };

    const choices = {
      metric: choice("Metric", "metric", (v) => change("metric", v)),
      rest: choice("Panel", "rest", (v) => change("rest", v)),
      size: choice("Size", "size", (v) => change("size", v)),
      view: choice("Shown as", "view", (v) => change("view", v)),
    };
    const plot = element("div", { className: "plot" });
    plot.setAttribute("role", "img");
    const legend = element("div", { className: "legend" });
    legend.setAttribute("role", "group");
    legend.setAttribute("aria-label", "Series in the chart");
    const caption = element("figcaption");
    figure.append(element("div", { className: "choices" }, ...Object.values(choices).map((c) => c.label)), plot, legend, caption);
    figure.hidden = false;

    const describe = () => {
      const p = panel();
      choices.metric.fill(unique(panels.map((q) => q.metric)).map((v) => [panels.find((q) => q.metric === v).title, v]), state.metric);
      choices.rest.fill(panels.filter((q) => q.metric === state.metric).map((q) => [q.rest, q.rest]), state.rest);
      choices.size.fill([["the largest of each", ""], ...p.sizes.map((v) => [v, v])], state.size);
      choices.view.fill(views(p), state.view);
      plot.setAttribute("aria-label", `${p.title} from run to run, ${p.rest}. The tables below hold the figures.`);
      const scaled = state.view === "beside" ? "Beside the other operators of the block, over its middle in the same circumstances." : "Bars: 95 % intervals.";
      caption.textContent = `${p.title}, ${p.rest}, by run. ${scaled} Changes: squares, exact; diamonds, paired (orange: worse, green: better); grey circles, unpaired. Dashed: other circumstances.${p.more}`;
      const focused = [...legend.children].indexOf(document.activeElement);
      const names = unique(p.tracks.map((t) => t.series));
      const all = (value) => () => (names.forEach((name) => visible.set(name, value)), refresh());
      legend.replaceChildren(
        ...names.map((name) => {
          const made = pressable(name, visible.get(name), () => (visible.set(name, !visible.get(name)), refresh()));
          made.prepend(swatch(p.tracks.find((t) => t.series === name)));
          return made;
        }),
        pressable("All", null, all(true)),
        pressable("None", null, all(false)),
      );
      legend.children[focused]?.focus();
    };
    const redraw = chart("history", plot, update);
    const refresh = () => (describe(), redraw());
    const change = (name, value) => ((state[name] = value), settle(), refresh());
    describe();
  };

  const kinds = { curves, map, findings, figure: paperFigure, history: runsChart };
  for (const figure of document.querySelectorAll("figure.chart")) {
    const { kind, group } = figure.dataset;
    const data = blocks(kind).filter((each) => String(each.group) === group);
    if (data.length) kinds[kind](figure, data);
  }
})();
