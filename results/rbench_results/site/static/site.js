/* rbench site script: sort, search, choose union members, compare two models. No library, no network, no inline style. Pages read in full without it. */
(function () {
  "use strict";
  document.documentElement.classList.add("js");
  var all = function (s, root) { return Array.prototype.slice.call((root || document).querySelectorAll(s)); };
  var one = function (s, root) { return (root || document).querySelector(s); };
  var PARTS = ["certified", "survived", "broken", "misclassified", "error"];

  /* ---- figures: the same formulas as rbench_results.figures, the same rounding as Python's ---- */
  function fmt(share) {
    var v = 100 * share;
    return (v % 1 === 0.25 ? v - 0.05 : v).toFixed(1);        /* the one tie at one decimal where toFixed goes up and Python to the even digit */
  }
  function count(n) { return String(n).replace(/\B(?=(\d{3})+$)/g, ","); }
  function wilson(k, n) {
    var z = 1.959963984540054, centre = (k + z * z / 2) / (n + z * z), half = z / (n + z * z) * Math.sqrt(k * (n - k) / n + z * z / 4);
    return [k === 0 ? 0 : centre - half, k === n ? 1 : centre + half];
  }
  function mcnemar(b, c) {                                    /* exact, two-sided; log terms so that large counts do not overflow */
    var n = b + c, k = Math.min(b, c), lf = [0], i, s = 0;
    for (i = 1; i <= n; i++) lf[i] = lf[i - 1] + Math.log(i);
    for (i = 0; i <= k; i++) s += Math.exp(lf[n] - lf[i] - lf[n - i] - n * Math.LN2);
    return n ? Math.min(1, 2 * s) : 1;
  }
  function bits(text, n) {                                    /* base64, most significant bit first: numpy.packbits; absent: no bit is set */
    var out = new Uint8Array(n), raw = text ? atob(text) : "", i;
    for (i = 0; i < n && text; i++) out[i] = (raw.charCodeAt(i >> 3) >> (7 - (i & 7))) & 1;
    return out;
  }
  function unpack(data, n) {                                  /* {wrong, members: {slug: {broken, certified, error, unanswered}}} with arrays for base64 */
    var row = { n: n, wrong: bits(data.wrong, n), members: {} };
    Object.keys(data.members).forEach(function (m) {
      row.members[m] = {};
      ["broken", "certified", "error", "unanswered"].forEach(function (s) { row.members[m][s] = bits(data.members[m][s], n); });
    });
    return row;
  }
  function join(row, members, i) {                            /* one image under a union: figures.join */
    var cert = true, error = false, unknown = false, j, m;
    if (row.wrong[i]) return "misclassified";
    for (j = 0; j < members.length; j++) {
      m = row.members[members[j]];
      if (m.broken[i]) return "broken";
      if (m.unanswered[i]) unknown = true;
      if (m.error[i]) error = true;
      if (!m.certified[i]) cert = false;
    }
    return unknown ? null : error ? "error" : cert ? "certified" : "survived";
  }
  function tally(row, members) {                              /* null while an image is unanswered: no figure over an incomplete slice */
    var s = { n: row.n }, i, status;
    PARTS.forEach(function (p) { s[p] = 0; });
    for (i = 0; i < row.n; i++) {
      status = join(row, members, i);
      if (status === null) return null;
      s[status]++;
    }
    s.robust = s.certified + s.survived;
    return s;
  }
  function figure(td, k, n) {
    var v, c, w;
    td.textContent = "";
    v = td.appendChild(document.createElement("span"));
    if (k === null) { v.className = "none"; v.textContent = "–"; td.dataset.v = ""; delete td.dataset.low; delete td.dataset.high; return; }
    w = wilson(k, n);
    c = td.appendChild(document.createElement("span"));
    v.className = "v"; v.textContent = fmt(k / n); c.className = "ci"; c.textContent = fmt(w[0]) + "–" + fmt(w[1]);
    td.dataset.v = k / n; td.dataset.low = w[0]; td.dataset.high = w[1];
  }
  function remember(state) {                                  /* the page's state, so that a link reproduces what is seen */
    var text = new URLSearchParams(Object.keys(state).filter(function (k) { return state[k]; }).map(function (k) { return [k, state[k]]; })).toString();
    try { history.replaceState(null, "", text ? "#" + text : location.pathname.split("/").pop() || "#"); } catch (e) { /* some browsers refuse on file:// */ }
  }
  function recalled() { return new URLSearchParams(location.hash.slice(1)); }

  /* ---- sort: missing last both ways, ties keep the order before ---- */
  function value(cell) { var v = cell.dataset.v; return v === undefined ? cell.textContent.trim() : v; }
  function sort(table, col, dir) {
    var body = table.tBodies[0], keyed = all("tr", body).map(function (tr, i) { return { tr: tr, v: value(tr.cells[col]), i: i }; });
    var missing = function (v) { return v === "" || v === "–"; };
    var numeric = keyed.every(function (k) { return missing(k.v) || !isNaN(k.v); });
    keyed.sort(function (a, b) {
      var am = missing(a.v), bm = missing(b.v);
      if (am || bm) return am - bm || a.i - b.i;
      return (numeric ? a.v - b.v : a.v.localeCompare(b.v, "en", { numeric: true })) * dir || a.i - b.i;
    });
    keyed.forEach(function (k) { body.appendChild(k.tr); });
    all("thead th", table).forEach(function (th) {
      if (one("button", th) && th.cellIndex === col) th.setAttribute("aria-sort", dir > 0 ? "ascending" : "descending"); else th.removeAttribute("aria-sort");
    });
  }
  all("table[data-sortable]").forEach(function (table) {
    all("thead th", table).forEach(function (th) {
      var b = one("button", th);
      if (b) b.addEventListener("click", function () {
        var now = th.getAttribute("aria-sort"), num = th.classList.contains("num") || th.classList.contains("barcol");
        sort(table, th.cellIndex, now ? (now === "ascending" ? -1 : 1) : (num ? -1 : 1));
        table.dispatchEvent(new Event("sorted"));
      });
    });
  });

  /* ---- board: members, search, plan, chosen rows ---- */
  var form = one("[data-board]");
  if (form) board(form, document.getElementById(form.dataset.board));
  function board(form, table) {
    var rows = all("tbody tr", table), status = one("[data-status]"), ticks = all("[name=member]", form), search = one("[data-filter]", form);
    var plan = one("[data-facet=plan]", form), link = one("[data-compare]", form), memo = new Map();
    var column = function (key) { return all("thead th", table).filter(function (th) { return th.dataset.key === key; })[0]; };
    var data = function (tr) {
      if (!memo.has(tr)) memo.set(tr, unpack(JSON.parse(tr.dataset.bits), +tr.dataset.n));
      return memo.get(tr);
    };
    function chosen() { return ticks.filter(function (t) { return t.checked; }); }
    function draw(tr, s) {
      var cell = one(".barcol", tr), svg = one("svg", cell), why = one(".why", cell), x = 0, q, c;
      figure(one("[data-c=robust]", tr), s && s.robust, s && s.n);
      if (one("[data-c=certified]", tr)) figure(one("[data-c=certified]", tr), s && (s.certified || tr.dataset.proof) ? s.certified : null, s && s.n);
      cell.dataset.v = s ? s.robust / s.n : "";
      svg.classList.toggle("off", !s);
      why.hidden = !!s;
      if (!s) { why.textContent = "no figure: a chosen member was not asked about every image"; svg.setAttribute("aria-label", "no figure"); return; }
      var at = function (name, a) { all("[data-s=" + name + "]", svg).forEach(function (el) { Object.keys(a).forEach(function (k) { el.setAttribute(k, a[k]); }); }); };
      PARTS.forEach(function (p) {
        var w = 100 * s[p] / s.n, a = { x: x + "%", width: w + "%" };
        at(p, a); if (p === "survived") at("hatch", a);
        x += w;
      });
      q = wilson(s.robust, s.n).map(function (v) { return 100 * v + "%"; });
      c = s.certified ? wilson(s.certified, s.n).map(function (v) { return 100 * v + "%"; }) : ["0%", "0%"];
      at("span", { x1: q[0], x2: q[1] }); at("lo", { x1: q[0], x2: q[0] }); at("hi", { x1: q[1], x2: q[1] }); at("cspan", { x1: c[0], x2: c[1] });
      svg.setAttribute("aria-label", PARTS.map(function (p) { return p + " " + fmt(s[p] / s.n); }).join(", ") + " % of " + s.n);
    }
    function rank() {                                          /* equal figures share a place */
      var figures = rows.map(function (tr) { return one("[data-c=robust]", tr).dataset.v; });
      rows.forEach(function (tr, i) { tr.cells[0].textContent = figures[i] === "" ? "–" : 1 + figures.filter(function (f) { return f !== "" && +f > +figures[i]; }).length; });
    }
    function say() {
      var shown = rows.filter(function (r) { return !r.hidden; }).length;
      var under = chosen().map(function (t) { return t.parentNode.textContent.trim(); }).join(", ");
      status.textContent = (under ? "Ranked by robust accuracy under " + under + ". " : "") + shown + " of " + rows.length + (rows.length === 1 ? " row." : " rows.");
    }
    function note() {
      var th = one("thead th[aria-sort]", table), every = chosen().length === ticks.length;
      var sorted = th && th.dataset.key + (th.getAttribute("aria-sort") === "ascending" ? ".up" : ".down");
      remember({ members: every ? "" : chosen().map(function (t) { return t.value; }).join(","), q: search.value.trim(), plan: plan ? plan.value : "", sort: sorted === "robust.down" ? "" : sorted });
    }
    function members() {
      var m = chosen().map(function (t) { return t.value; });
      rows.forEach(function (tr) { draw(tr, tally(data(tr), m)); });
      sort(table, column("robust").cellIndex, -1); rank(); say();
    }
    function filter() {
      var words = search.value.toLowerCase().split(/\s+/);
      rows.forEach(function (tr) {
        var text = tr.textContent.toLowerCase();
        tr.hidden = !(words.every(function (w) { return text.indexOf(w) >= 0; }) && (!plan || !plan.value || tr.dataset.plan === plan.value));
      });
      say();
    }
    function choose() {
      var picked = rows.filter(function (tr) { var b = one(".pick input", tr); tr.classList.toggle("on", !!b && b.checked); return b && b.checked; });
      if (link) link.setAttribute("href", link.getAttribute("href").split("#")[0] + (picked.length > 1 ? "#" + new URLSearchParams([["a", picked[0].dataset.row], ["b", picked[1].dataset.row]]) : ""));
    }
    ticks.forEach(function (t) { t.addEventListener("change", function () { if (!chosen().length) t.checked = true; members(); note(); }); });
    search.addEventListener("input", function () { filter(); note(); });
    if (plan) plan.addEventListener("change", function () { filter(); note(); });
    form.addEventListener("submit", function (e) { e.preventDefault(); });
    table.addEventListener("change", choose);
    table.addEventListener("sorted", note);
    function restore() {
      var h = recalled(), wanted = (h.get("members") || "").split(","), by = (h.get("sort") || "").split(".");
      if (h.get("members")) {
        ticks.forEach(function (t) { t.checked = wanted.indexOf(t.value) >= 0; });
        if (!chosen().length) ticks.forEach(function (t) { t.checked = true; });
        members();
      }
      search.value = h.get("q") || "";
      if (plan) plan.value = h.get("plan") || "";
      if (plan && plan.selectedIndex < 0) plan.value = "";
      if (column(by[0])) sort(table, column(by[0]).cellIndex, by[1] === "up" ? 1 : -1);
      filter(); choose();
    }
    restore();
  }

  /* ---- compare: two rows of a board on the images of both ---- */
  var pair = one("[data-pair]");
  if (pair) compare(pair);
  function compare(form) {
    var rows = {}, A = form.elements.a, B = form.elements.b, M = form.elements.member, why = one("[data-why]"), members;
    all("[data-rows] li").forEach(function (li) { rows[li.dataset.row] = JSON.parse(li.dataset.bits); });
    members = Object.keys(rows[A.value].members);
    function holds(data, from, to, chosen) {                   /* 1 holds, 0 does not, null unanswered */
      var row = unpack(data, data.n), out = [], i, s;
      for (i = from; i < to; i++) { s = join(row, chosen, i - data.first); out.push(s === null ? null : s === "certified" || s === "survived" ? 1 : 0); }
      return out;
    }
    function name(select) { return select.options[select.selectedIndex].textContent; }
    function put(key, text) { all("[data-out=" + key + "]").forEach(function (e) { e.textContent = text; }); }
    function trouble(text) {
      why.textContent = text; why.hidden = !text;
      all("[data-result]").forEach(function (s) { s.hidden = !!text; });
    }
    function show() {
      var a = rows[A.value], b = rows[B.value], from = Math.max(a.first, b.first), to = Math.min(a.first + a.n, b.first + b.n), n = to - from;
      var chosen = M && M.value ? [M.value] : members, t = [0, 0, 0, 0], only = { a: [], b: [] }, x, y, i, p, ka, kb, at = 0;
      put("name-a", name(A)); put("name-b", name(B));
      if (n <= 0) return trouble("These two were not run on the same images.");
      x = holds(a, from, to, chosen); y = holds(b, from, to, chosen);
      for (i = 0; i < n; i++) {
        if (x[i] === null || y[i] === null) return trouble("No figure: " + name(x[i] === null ? A : B) + " was not asked about every image under this threat.");
        t[(x[i] ? 0 : 2) + (y[i] ? 0 : 1)]++;
        if (x[i] && !y[i]) only.a.push(from + i);
        if (y[i] && !x[i]) only.b.push(from + i);
      }
      trouble("");
      p = mcnemar(t[1], t[2]); ka = t[0] + t[1]; kb = t[0] + t[2];
      put("both", t[0]); put("only-a", t[1]); put("only-b", t[2]); put("neither", t[3]); put("n", count(n));
      put("slice", n === 1 ? from : from + "–" + (to - 1));
      put("sum-a", ka); put("sum-b", kb); put("fell-a", n - ka); put("fell-b", n - kb);
      put("acc-a", fmt(ka / n) + " % (" + wilson(ka, n).map(fmt).join("–") + ")"); put("acc-b", fmt(kb / n) + " % (" + wilson(kb, n).map(fmt).join("–") + ")");
      put("diff", (ka >= kb ? "+" : "−") + (100 * Math.abs(ka - kb) / n).toFixed(1)); put("p", p < 0.0001 ? "< 0.0001" : p.toFixed(4));
      [["both", t[0]], ["only-a", t[1]], ["only-b", t[2]], ["neither", t[3]]].forEach(function (q) {
        var w = 100 * q[1] / n;
        all("[data-r=" + q[0] + "]").forEach(function (r) { r.setAttribute("x", at + "%"); r.setAttribute("width", w + "%"); });
        at += w;
      });
      gallery("a", only.a, b, chosen); gallery("b", only.b, a, chosen);
    }
    function gallery(side, indices, fallen, chosen) {          /* the witnesses that broke the other model, where pictures exist */
      var ul = one("[data-gallery=" + side + "]"), seen = {}, shown;
      fallen.pictures.forEach(function (p) { if (!(p.index in seen) && chosen.indexOf(p.member) >= 0) seen[p.index] = p; });
      shown = indices.filter(function (i) { return i in seen; }).slice(0, 12);
      ul.textContent = "";
      shown.forEach(function (i) { ul.appendChild(witness(seen[i])); });
      put("pictured-" + side, shown.length);
    }
    function witness(p) {
      var li = document.createElement("li"), span = li.appendChild(document.createElement("span")), cap = li.appendChild(document.createElement("span"));
      span.className = "triple"; cap.className = "cap";
      ["image " + p.index + ", labelled " + p.label, "adversarial, predicted " + p.predicted, "difference, orange brighter, blue darker"].forEach(function (alt, column) { span.appendChild(tile(p.sheet, column, alt)); });
      cap.textContent = "#" + p.index + ", " + p.label + " → " + p.predicted + ", " + p.set + "; difference ×" + p.times;
      return li;
    }
    function tile(sheet, column, alt) {                        /* sheet: file, row, rows, width, height */
      var ns = "http://www.w3.org/2000/svg", svg = document.createElementNS(ns, "svg"), im = svg.appendChild(document.createElementNS(ns, "image")), w = sheet[3], h = sheet[4];
      svg.setAttribute("class", column === 2 ? "px d" : "px"); svg.setAttribute("viewBox", "0 0 " + w + " " + h); svg.setAttribute("role", "img"); svg.setAttribute("aria-label", alt);
      im.setAttribute("class", "pixels"); im.setAttribute("href", sheet[0]); im.setAttribute("x", -w * column); im.setAttribute("y", -h * sheet[1]); im.setAttribute("width", 3 * w); im.setAttribute("height", h * sheet[2]);
      return svg;
    }
    form.addEventListener("submit", function (e) { e.preventDefault(); });
    form.addEventListener("change", function () { show(); remember({ a: A.value, b: B.value, member: M ? M.value : "" }); });
    recalled().forEach(function (v, k) { var el = form.elements[k]; if (el && all("option", el).some(function (o) { return o.value === v; })) el.value = v; });
    show();
  }

  /* ---- copy buttons, where the browser allows it ---- */
  if (navigator.clipboard) all("pre").forEach(function (pre) {
    var b = document.createElement("button"); b.type = "button"; b.className = "btn copy"; b.textContent = "Copy";
    b.addEventListener("click", function () { navigator.clipboard.writeText(one("code", pre).textContent).then(function () { b.textContent = "Copied"; }, function () { b.textContent = "Not allowed here"; }); });
    pre.insertBefore(b, pre.firstChild);
  });
})();
