"use strict";
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const $ = (id) => document.getElementById(id);
  const codecs = new Map(data.codecs.map((c) => [c.name, c]));
  const metrics = new Map(data.metrics.map((m) => [m.name, m]));
  const ours = data.codecs.filter((c) => c.ours && c.shown);
  const others = data.codecs.filter((c) => !c.ours);
  const element = (tag, text, attributes = {}) => {
    const made = document.createElement(tag);
    if (text !== undefined && text !== null) made.textContent = text;
    for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
    return made;
  };
  const options = (select, pairs) => select.replaceChildren(
    ...pairs.map(([value, text]) => element("option", text, { value })));
  const signed = (value, digits) => (value > 0 ? "+" : value < 0 ? "−" : "") + Math.abs(value).toFixed(digits);

  options($("metric"), data.metrics.map((m) => [m.name, m.title]));
  options($("picture"), [["", data.pictures.length > 1 ? "the mean" : "the picture"],
    ...(data.pictures.length > 1 ? data.pictures.map((p) => [p.name, p.name]) : [])]);
  options($("span"), data.spans.map((s, i) => [i, `${s[0]} and ${s[1]}`]));
  options($("subject"), data.codecs.map((c) => [c.name, c.title]));

  // ---- curves
  let chart = null;
  const hidden = new Set();
  const draw = () => {
    const metric = $("metric").value;
    const lines = data.curves[metric][$("picture").value];
    const drawn = data.codecs.filter((c) => (c.shown || $("branches").checked) && lines[c.name].length);
    const [low, high] = data.rates;
    let least = Infinity, most = -Infinity;
    for (const c of drawn) for (const [x, y] of lines[c.name]) if (x >= low && x <= high) {
      least = Math.min(least, y); most = Math.max(most, y);
    }
    if (!(least < most)) { least -= 1; most = least + 2; }
    const margin = 0.04 * (most - least);
    const width = Math.max(280, $("chart").clientWidth);
    const between = (u, i) => {  // a curve's value at the cursor, other curves' rates included
      const xs = u.data[0], ys = u.data[i];
      const at = u.cursor.idx;
      if (at === null || at === undefined) return null;
      let a = at, b = at;
      while (a >= 0 && ys[a] == null) a--;
      while (b < ys.length && ys[b] == null) b++;
      if (a < 0 || b >= ys.length) return null;
      const share = a === b ? 0 : Math.log(xs[at] / xs[a]) / Math.log(xs[b] / xs[a]);
      return ys[a] + share * (ys[b] - ys[a]);
    };
    if (chart) chart.destroy();
    chart = null;
    $("chart").textContent = drawn.length ? "" : "This picture has no figures by this metric: it is too small for it.";
    if (!drawn.length) return;
    const aligned = uPlot.join(drawn.map((c) => [
      lines[c.name].map((p) => p[0]), lines[c.name].map((p) => p[1])]));
    chart = new uPlot({
      width, height: Math.min(460, Math.max(300, width * 0.6)),
      scales: { x: { distr: 3, time: false, range: (u, a, b) => (u.zoomed ? [a, b] : [Math.max(low, 0.01), high]) },
                y: { range: (u, a, b) => (u.zoomed ? [a, b] : [least - margin, most + margin]) } },
      axes: [{ label: "bits per pixel, whole file", values: (u, ticks) => ticks.map((t) => (t === null ? "" : String(+t.toPrecision(3)))), space: 30, grid: { stroke: "#eee" },
               filter: (u, ticks) => ticks.map((t) => (/^[125](\.0*)?e/.test(t.toExponential(3)) ? t : null)) },
             { label: metrics.get(metric).axis, size: 58, grid: { stroke: "#eee" } }],
      series: [{ label: "bpp", value: (u, v) => (v == null ? "–" : v.toFixed(3)) },
        ...drawn.map((c, i) => ({
          label: c.title, stroke: c.colour, width: c.ours && c.shown ? 2.5 : 1.5,
          dash: c.name !== "carcodec" && c.ours ? [6, 4] : undefined,
          spanGaps: true, show: !hidden.has(c.name), points: { show: !c.ours, size: 5 },
          value: (u) => { const v = between(u, i + 1); return v === null ? "–" : v.toFixed(2); } }))],
      hooks: {
        setSeries: [(u, i, o) => { if (i > 0 && "show" in o) hidden[o.show ? "delete" : "add"](drawn[i - 1].name); }],
        setSelect: [(u) => { u.zoomed = u.select.width > 0; }],
        ready: [(u) => u.over.addEventListener("dblclick", () => { u.zoomed = false; u.setData(u.data); })],
      },
    }, aligned, $("chart"));
  };

  // ---- BD table
  const cell = (entry, kind) => {
    const value = entry && entry[kind];
    if (value === null || value === undefined) return element("td", "no overlap");
    const better = kind ? value > 0 : value < 0;
    const made = element("td", signed(value, kind ? 2 : 1), value ? { class: better ? "win" : "lose" } : {});
    if (entry[2] < data.pictures.length) made.append(" ", element("small", entry[2]));
    return made;
  };
  const deltas = () => data.deltas[$("metric").value][$("span").value];
  const tables = () => {
    const kind = Number($("kind").value), found = deltas();
    const head = element("tr");
    head.append(element("th", "against"), ...others.map((c) => element("th", c.title)));
    const rows = data.codecs.filter((c) => c.shown || $("branches").checked).map((c) => {
      const row = element("tr");
      row.append(element("td", c.title), ...others.map((o) =>
        (o.name === c.name ? element("td", "") : cell(found[o.name][c.name], kind))));
      return row;
    });
    const thead = element("thead"), tbody = element("tbody");
    thead.append(head); tbody.append(...rows);
    $("bd").replaceChildren(thead, tbody);
    $("crossovers").replaceChildren(...data.crossovers[$("metric").value].map((c) => element("li",
      `${codecs.get(c.codec).title} and ${codecs.get(c.anchor).title} change places at ${c.bpp} bpp: above it `
      + `${codecs.get(c.above ? c.codec : c.anchor).title} is better.`)));
    pictureRows();
  };
  const pictureRows = () => {
    const subject = $("subject").value, found = deltas();
    const head = element("tr");
    const columns = others.filter((o) => o.name !== subject);
    head.append(element("th", "picture"), ...columns.map((o) => element("th", `against ${o.title}`)));
    const rows = data.pictures.map((p) => {
      const row = element("tr", null, { tabindex: 0 });
      row.append(element("td", p.name), ...columns.map((o) => {
        const value = found[o.name][subject][3][p.name];
        return cell(value === null ? null : [value, null, data.pictures.length], 0);
      }));
      const open = () => {
        if (data.pictures.length > 1) { $("picture").value = p.name; draw(); }
        const at = data.views.findIndex((v) => v.picture === p.name);
        if (at >= 0) { $("view").value = at; view(); $("viewer").scrollIntoView({ behavior: "smooth" }); }
      };
      row.addEventListener("click", open);
      row.addEventListener("keydown", (e) => { if (e.key === "Enter") open(); });
      return row;
    });
    const thead = element("thead"), tbody = element("tbody");
    thead.append(head); tbody.append(...rows);
    $("rows").replaceChildren(thead, tbody);
  };

  // ---- viewer
  const caption = (entry) => {
    if (entry.bytes === undefined) return entry.title;
    const figures = Object.entries(entry.figures).map(([m, v]) => `${metrics.get(m).title} ${v === null ? "–" : v}`);
    return `${entry.title}: ${entry.bytes.toLocaleString("en")} bytes, ${entry.bpp} bpp; ${figures.join(", ")}`;
  };
  const sides = () => {
    const now = data.views[$("view").value];
    const [left, right] = ["left", "right"].map((side) => now.shown.find((e) => e.name === $(side).value) || now.shown[0]);
    $("left-image").src = left.source;
    $("right-image").src = right.source;
    $("left-image").alt = left.title;
    $("right-image").alt = right.title;
    $("left-caption").textContent = "◧ " + caption(left);
    $("right-caption").textContent = caption(right) + " ◨";
    const zoom = Number($("zoom").value);
    const pair = $("pair");
    const width = zoom ? now.width * zoom : Math.min(now.width, $("stage").clientWidth || now.width);
    pair.style.width = `${width}px`;
    pair.style.height = `${(width * now.height) / now.width}px`;
    pair.classList.toggle("pixels", zoom > 1);
    pair.classList.toggle("difference", $("difference").checked);
    $("slider").disabled = $("difference").checked;
  };
  const view = () => {
    const now = data.views[$("view").value];
    for (const [side, usual] of [["left", "carcodec"], ["right", others.some((o) => o.name === "jpeg") ? "jpeg" : (others[0] || {}).name]]) {
      const before = $(side).value || usual;
      options($(side), now.shown.map((e) => [e.name, e.title]));
      if (now.shown.some((e) => e.name === before)) $(side).value = before;
    }
    $("view-note").textContent = "carcodec's point nearest to " + now.rate + " bpp sets the bytes; every other codec "
      + "gets the fewest that are not fewer, or its most. JPEG, WebP and AVIF are shown by the browser"
      + (now.whole ? "; what it may not open is embedded as AVIF 4:4:4 of quality 90." : "'s AVIF 4:4:4 of quality 90, the middle of the picture.");
    sides();
  };
  const slide = (percent) => {
    $("slider").value = percent;
    $("pair").style.setProperty("--at", `${percent}%`);
  };
  if (data.views.length) {
    $("viewer").hidden = false;
    options($("view"), data.views.map((v, i) => [i, `${v.picture}, ${v.rate} bpp`]));
    $("view").addEventListener("change", view);
    for (const id of ["left", "right", "zoom", "difference"]) $(id).addEventListener("change", sides);
    $("slider").addEventListener("input", () => slide($("slider").value));
    const drag = (event) => {
      if (event.type === "pointermove" && !(event.buttons & 1)) return;
      const box = $("pair").getBoundingClientRect();
      slide(Math.min(100, Math.max(0, (100 * (event.clientX - box.left)) / box.width)));
    };
    $("pair").addEventListener("pointerdown", drag);
    $("pair").addEventListener("pointermove", drag);
    view();
  }

  // ---- the rest
  const how = element("thead");
  const row = element("tr");
  row.append(...["codec", "run as", "version", "encode s/MP", "decode s/MP"].map((t) => element("th", t)));
  how.append(row);
  const body = element("tbody");
  body.append(...data.codecs.map((c) => {
    const made = element("tr");
    made.append(...[c.title, c.how, c.version, c.seconds[0] ?? "", c.seconds[1] ?? ""].map((t) => element("td", t)));
    return made;
  }));
  $("how").replaceChildren(how, body);
  $("notes").replaceChildren(...data.notes.map((n) => element("li", n)));
  const summarise = () => {
    if (!ours.length) return;
    const [low, high] = data.spans[$("span").value];
    const parts = others.map((o) => [o.title, (deltas()[o.name] || {})[ours[0].name]])
      .filter(([, e]) => e && e[0] !== null)
      .map(([title, e]) => `${Math.abs(e[0]).toFixed(1)} % ${e[0] > 0 ? "more" : "fewer"} than ${title}`);
    $("summary").textContent = parts.length
      ? `At equal ${metrics.get($("metric").value).title}, between ${low} and ${high} bits per pixel, carcodec needs `
        + `these bits: ${parts.join(", ")} (mean BD-rate).`
      : "";
  };
  for (const id of ["metric", "picture", "branches"]) $(id).addEventListener("change", draw);
  for (const id of ["metric", "branches", "span", "kind"]) $(id).addEventListener("change", tables);
  for (const id of ["metric", "span"]) $(id).addEventListener("change", summarise);
  $("subject").addEventListener("change", pictureRows);
  let resized = 0;
  addEventListener("resize", () => { clearTimeout(resized); resized = setTimeout(() => { draw(); if (data.views.length) sides(); }, 100); });
  tables(); summarise(); draw();
  document.body.dataset.ready = "yes";
})();
