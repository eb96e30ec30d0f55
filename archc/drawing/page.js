"use strict";
(() => {
  const { root, open: atFirst, blocks } = JSON.parse(document.getElementById("data").textContent);
  const view = document.getElementById("view"), world = document.getElementById("world");
  const tip = document.getElementById("tip");
  let open = new Set(atFirst), camera = { x: 0, y: 0, k: 1 }, size = { w: 1, h: 1 };

  const text = (s) => s.replace(/[&<>"]/g, (c) => ({ "&": "&amp;", "<": "&lt;", ">": "&gt;", '"': "&quot;" })[c]);
  const n = (v) => +v.toFixed(2);
  const mix = (a, b, t) => [a[0] + (b[0] - a[0]) * t, a[1] + (b[1] - a[1]) * t];

  // A map of one coordinate that keeps order, lets nothing shrink, and makes each span [from, to, needed] long enough.
  // Short spans first, each stretched evenly: what was centred on a line stays so.
  function stretch(spans, end) {
    const at = [...new Set([0, end, ...spans.flatMap(([a, b]) => [a, b])])].sort((a, b) => a - b);
    const gaps = at.slice(1).map((v, i) => v - at[i]);
    for (const [a, b, needed] of [...spans].sort((s, t) => s[1] - s[0] - t[1] + t[0])) {
      const first = at.indexOf(a), last = at.indexOf(b);
      const length = gaps.slice(first, last).reduce((s, g) => s + g, 0);
      if (length > 0 && length < needed) for (let i = first; i < last; i++) gaps[i] *= needed / length;
    }
    const to = [at[0]];
    gaps.forEach((gap) => to.push(to[to.length - 1] + gap));
    return (v) => {
      let i = 1;
      while (i < at.length - 1 && v > at[i]) i++;
      const span = at[i] - at[i - 1];
      return v <= at[0] ? v : v >= at[at.length - 1] ? to[at.length - 1] + v - at[at.length - 1]
        : to[i - 1] + ((v - at[i - 1]) * (to[i] - to[i - 1])) / span;
    };
  }

  // The size of a block as it now is, where its ports are, and how to draw it.
  function plan(id) {
    const block = blocks[id];
    if (!block.plans || !open.has(id)) {
      return { id, w: block.w, h: block.h, port: () => block.w / 2, passes: false, draw: () => closed(id) };
    }
    const inner = Object.fromEntries(block.plans[0].children.map(([child]) => [child, plan(child)]));
    const misfit = (p) => p.children.reduce((sum, [child, , , w, h]) => {
      const dx = inner[child].w - w, dy = inner[child].h - h; // an empty place is worse than a stretched one
      return sum + Math.max(dx, -2 * dx) + Math.max(dy, -2 * dy);
    }, 0);
    const p = block.plans.reduce((best, other) => (misfit(other) < misfit(best) ? other : best));
    const children = p.children.map(([child, x, y, w, h]) => ({ inner: inner[child], x, y, w, h }));
    const X = stretch(children.map((c) => [c.x, c.x + c.w, c.inner.w]), p.w);
    const Y = stretch(children.map((c) => [c.y, c.y + c.h, c.inner.h]), p.h);
    for (const c of children) {
      c.left = (X(c.x) + X(c.x + c.w) - c.inner.w) / 2;
      c.top = (Y(c.y) + Y(c.y + c.h) - c.inner.h) / 2;
    }
    const w = X(p.w), h = Y(p.h);
    const port = (side, i) => (p.compact ? w / 2 : X(p[side][i]));
    return { id, w, h, port, passes: !p.compact, draw: () => opened(id, p, { children, X, Y, w, h }) };
  }

  function closed(id) {
    const block = blocks[id];
    return block.plans ? `<g data-c="${id}" tabindex="0" role="button">${block.svg}</g>` : `<g data-b="${id}">${block.svg}</g>`;
  }

  function opened(id, p, at) {
    const block = blocks[id];
    let out = "";
    if (block.frame) {
      const [fill, stroke, dashed] = block.frame;
      for (const d of block.sheets ? [block.sheets, block.sheets / 2, 0] : [0]) {
        out += `<rect class="frame f-${fill} s-${stroke}" x="${d + 0.5}" y="${d + 0.5}" rx="8" stroke-width="1.2"` +
          ` width="${n(at.w - block.sheets - 1)}" height="${n(at.h - block.sheets - 1)}"${dashed && !d ? ' stroke-dasharray="4 3"' : ""}/>`;
      }
      const left = p.ins.length && p.title > Math.min(...p.ins) ? at.X(p.title) : p.title;
      out = `<g data-c="${id}" data-tip="${text(block.tip)}" tabindex="0" role="button">${out}<g transform="translate(${n(left)} 0)">${block.title}</g></g>`;
    }
    for (const c of at.children) out += `<g transform="translate(${n(c.left)} ${n(c.top)})">${c.inner.draw()}</g>`;
    const moves = [];
    for (const edge of p.edges) out += line(edge, at, moves);
    for (const [x, y, label] of p.labels) {
      let best = [Infinity, 0, 0];
      for (const [px, py, dx, dy] of moves) {
        const far = Math.hypot(px - x, py - y);
        if (far < best[0]) best = [far, dx, dy];
      }
      out += `<text class="f-muted" x="${n(x + best[1])}" y="${n(y + best[2] + 3)}" font-size="9" text-anchor="middle">${text(label)}</text>`;
    }
    return out;
  }

  // An edge on the stretched plan: its ends follow the blocks they are at, what is between follows smoothly.
  function line(edge, at, moves) {
    const tail = edge.tail && at.children[edge.tail[0]], head = edge.head && at.children[edge.head[0]];
    let points = [];
    for (let i = 0; i < edge.p.length; i += 2) points.push([edge.p[i], edge.p[i + 1]]);
    if (edge.style === "loop") points = loop(edge, tail);
    else {
      const moved = points.map(([x, y]) => [at.X(x), at.Y(y)]);
      const end = (c, side, index, point, mapped) => {
        if (!c) return [0, 0];
        const { inner } = c, limit = inner.w / 2 - 8;
        const aside = Math.max(-limit, Math.min(limit, point[0] - c.x - c.w / 2));
        const down = side === "ins" ? point[1] - c.y : inner.h + point[1] - c.y - c.h;
        const to = inner.passes ? [c.left + inner.port(side, index), side === "ins" ? c.top : c.top + inner.h]
          : Math.abs(inner.w - c.w) < 0.1 ? [c.left + point[0] - c.x, c.top + down]
            : [c.left + inner.w / 2 + aside, c.top + Math.max(0, Math.min(inner.h, down))];
        return [to[0] - mapped[0], to[1] - mapped[1]];
      };
      const last = points.length - 1;
      const a = end(tail, "outs", edge.tail && edge.tail[1], points[0], moved[0]);
      const b = end(head, "ins", edge.head && edge.head[1], points[last], moved[last]);
      const drawn = moved.map(([x, y], i) => {
        const t = i / last, s = (1 - t) ** 3, e = t ** 3;
        return [x + a[0] * s + b[0] * e, y + a[1] * s + b[1] * e];
      });
      drawn.forEach(([x, y], i) => moves.push([...points[i], x - points[i][0], y - points[i][1]]));
      points = drawn;
    }
    const arrow = edge.head && (edge.style === "loop" || !head.inner.passes);
    const colour = edge.style === "data" ? "edge" : "control";
    let corners = "";
    if (arrow) {
      const tipAt = points[points.length - 1];
      let from = [tipAt[0], tipAt[1] - 1];
      for (let i = points.length - 2; i >= 0; i--) {
        if (Math.hypot(points[i][0] - tipAt[0], points[i][1] - tipAt[1]) > 0.5) { from = points[i]; break; }
      }
      const d = Math.hypot(tipAt[0] - from[0], tipAt[1] - from[1]), ux = (tipAt[0] - from[0]) / d, uy = (tipAt[1] - from[1]) / d;
      const [bx, by] = [tipAt[0] - ux * 6.5, tipAt[1] - uy * 6.5];
      corners = `<polygon class="f-${colour}" points="${n(tipAt[0])},${n(tipAt[1])} ${n(bx - uy * 2.7)},${n(by + ux * 2.7)} ${n(bx + uy * 2.7)},${n(by - ux * 2.7)}"/>`;
      points[points.length - 1] = [tipAt[0] - ux * 5.2, tipAt[1] - uy * 5.2];
    }
    const [start, ...rest] = points.map(([x, y]) => `${n(x)},${n(y)}`);
    return `<g data-tip="${text(edge.tip)}"><path class="s-${colour}" d="M${start}C${rest.join(" ")}" fill="none" stroke-width="1.2"` +
      `${edge.style === "control" ? ' stroke-dasharray="4 3"' : ""}/>${corners}</g>`;
  }

  // From the lower border of a cell around its right side to its upper border.
  function loop(edge, c) {
    const out = 14 + 9 * edge.loop, drop = 8 + 5 * edge.loop;
    const start = [c.left + c.inner.port("outs", edge.tail[1]), c.top + c.inner.h];
    const end = [c.left + c.inner.port("ins", edge.head[1]), c.top];
    const side = c.left + c.inner.w + out, low = start[1] + drop, high = end[1] - drop - 6;
    const corners = [start, [start[0], low], [side, low], [side, high], [end[0], high], end];
    const towards = (a, b) => mix(a, b, Math.min(0.5, 6 / Math.max(Math.abs(b[0] - a[0]) + Math.abs(b[1] - a[1]), 1e-9)));
    const points = [start];
    for (let i = 1; i < corners.length - 1; i++) {
      const a = towards(corners[i], corners[i - 1]), b = towards(corners[i], corners[i + 1]), before = points[points.length - 1];
      points.push(mix(before, a, 1 / 3), mix(before, a, 2 / 3), a, mix(a, corners[i], 0.55), mix(b, corners[i], 0.55), b);
    }
    const before = points[points.length - 1];
    points.push(mix(before, end, 1 / 3), mix(before, end, 2 / 3), end);
    return points;
  }

  function render() {
    const whole = plan(root);
    size = { w: whole.w, h: whole.h };
    world.innerHTML = whole.draw();
    for (const title of world.querySelectorAll("title")) {
      title.parentNode.dataset.tip = title.textContent;
      title.remove();
    }
    search();
  }

  function place() {
    world.setAttribute("transform", `translate(${camera.x} ${camera.y}) scale(${camera.k})`);
  }

  function fit() {
    const box = view.getBoundingClientRect();
    camera.k = Math.min(box.width / (size.w + 60), Math.max(box.height / (size.h + 40), 0.75), 1.6);
    camera.x = (box.width - size.w * camera.k) / 2;
    camera.y = Math.max(20, (box.height - size.h * camera.k) / 2);
    place();
  }

  // Open or close a cluster; its upper left corner stays where it is on the screen.
  function toggle(id) {
    const where = () => world.querySelector(`[data-c="${id}"]`).getBoundingClientRect();
    const before = where();
    if (open.has(id)) open.delete(id);
    else open.add(id);
    render();
    const after = where();
    camera.x += before.left + before.width / 2 - after.left - after.width / 2;
    camera.y += before.top - after.top;
    place();
    world.querySelector(`[data-c="${id}"]`).focus({ preventScroll: true });
  }

  function search() {
    const wanted = document.getElementById("find").value.trim().toLowerCase();
    for (const g of world.querySelectorAll("[data-b]")) g.classList.toggle("found", !!wanted && blocks[g.dataset.b].find.includes(wanted));
    for (const g of world.querySelectorAll("[data-c]")) {
      g.classList.toggle("found", !!wanted && !open.has(g.dataset.c) && holds(g.dataset.c, wanted));
    }
  }

  function holds(id, wanted) {
    const block = blocks[id];
    return block.plans ? block.plans[0].children.some(([child]) => holds(child, wanted)) : block.find.includes(wanted);
  }

  let drag = null;
  view.addEventListener("pointerdown", (e) => { drag = { x: e.clientX, y: e.clientY, far: 0, target: e.target }; });
  window.addEventListener("pointermove", (e) => {
    if (drag) {
      const dx = e.clientX - drag.x, dy = e.clientY - drag.y;
      drag.far += Math.abs(dx) + Math.abs(dy);
      drag.x = e.clientX; drag.y = e.clientY;
      if (drag.far > 4) { view.classList.add("moving"); camera.x += dx; camera.y += dy; place(); }
    }
    const about = !drag && e.target.closest && e.target.closest("[data-tip]");
    tip.style.display = about && about.dataset.tip ? "block" : "none";
    if (about && about.dataset.tip) {
      const [first, ...rest] = about.dataset.tip.split("\n");
      tip.innerHTML = `<b>${text(first)}</b>${text(rest.join("\n"))}`;
      tip.style.left = `${Math.max(4, Math.min(e.clientX + 14, innerWidth - tip.offsetWidth - 8))}px`;
      tip.style.top = `${Math.max(4, Math.min(e.clientY + 14, innerHeight - tip.offsetHeight - 8))}px`;
    }
  });
  window.addEventListener("pointerup", () => {
    const was = drag;
    drag = null;
    view.classList.remove("moving");
    const cluster = was && was.far <= 4 && was.target.closest && was.target.closest("[data-c]");
    if (cluster) toggle(cluster.dataset.c);
  });
  view.addEventListener("keydown", (e) => {
    const cluster = e.target.closest("[data-c]");
    if (cluster && (e.key === "Enter" || e.key === " ")) { e.preventDefault(); toggle(cluster.dataset.c); }
  });
  view.addEventListener("wheel", (e) => {
    e.preventDefault();
    const box = view.getBoundingClientRect(), x = e.clientX - box.left, y = e.clientY - box.top;
    const k = Math.max(0.05, Math.min(8, camera.k * Math.exp(-e.deltaY * 0.0015)));
    camera = { k, x: x - ((x - camera.x) * k) / camera.k, y: y - ((y - camera.y) * k) / camera.k };
    place();
  }, { passive: false });
  const show = (ids) => { open = new Set(ids); render(); fit(); };
  document.getElementById("all").onclick = () => show(Object.keys(blocks).filter((id) => blocks[id].plans));
  document.getElementById("none").onclick = () => show([root]);
  document.getElementById("start").onclick = () => show(atFirst);
  document.getElementById("fit").onclick = fit;
  document.getElementById("find").oninput = search;
  window.addEventListener("resize", fit);
  render();
  fit();
})();
