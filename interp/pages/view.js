// The page: what is chosen, and everything that follows from it.

const CHOICES = {
  quantity: null, // by which numbers the text is coloured
  kind: null, // of map
  source_set: "image",
  gauge: "contrast",
  head: null, // [layer, head], whose map the picture shows
  head_of: "image",
  head_shows: "map",
  patch: null, // {image, cell, grid}, whose effect on every token the text shows
  path: "all",
  share: 0.9,
  is_same_scale: false,
  is_coloured: false,
};

class View {
  constructor(host, data) {
    this.host = host;
    this.data = data;
    Object.assign(this, CHOICES);
    this.targets = data.runs.map((run) => run.start);
    this.images = data.runs.map((run) => run.image);
    this.quantity = data.runs[0].quantities[0].name;
    this.kind = data.runs[0].kinds[0]?.name ?? null;
    const texts = data.runs.map((run) => JSON.stringify(run.targets.map((one) => one.token)));
    this.is_same_text = texts.every((one) => one === texts[0]);
    this.closed = new Set(["facts"]);
    this.turn = 0;
    this.head_of_page = element("header");
    this.columns = data.runs.map(() => ({ look: element("div", { class: "look" }), read: element("div", { class: "read" }) }));
    const sections = this.columns.map(({ look, read }) => element("section", { class: "run" }, look, read));
    host.replaceChildren(this.head_of_page, element("div", { class: "columns" }, ...sections));
  }

  target(run) {
    return this.targets[this.data.runs.indexOf(run)];
  }

  // Which of the strongest heads of the chosen token the chosen head is; null for none of them.
  rank(run) {
    if (this.head === null || !run.heads) return null;
    const k = this.target(run);
    const found = run.heads.layer[k].findIndex((layer, r) => layer === this.head[0] && run.heads.head[k][r] === this.head[1]);
    return found < 0 ? null : found;
  }

  // Whether the chosen patch is one of an answer's image: another image has other cells.
  hasPatch(run) {
    const image = this.patch && run.images[this.patch.image];
    return Boolean(image) && `${image.rows} × ${image.columns}` === this.patch.grid;
  }

  // The largest of a number over both answers that have a section.
  async overRuns(section, numberOf) {
    const runs = this.data.runs.filter((run) => section in run);
    return Math.max(0, ...(await Promise.all(runs.map(numberOf))));
  }

  set(changes) {
    Object.assign(this, changes);
    this.draw();
  }

  choose(run, k) {
    if (k < 0) return;
    const own = this.data.runs.indexOf(run);
    this.targets = this.targets.map((one, r) => (r === own || this.is_same_text ? k : one));
    this.set({ patch: null });
  }

  async draw() {
    this.turn += 1;
    try {
      await this.drawn(this.turn);
    } catch (error) {
      const text = `This page could not be drawn (${error.message}). Its file, or this browser, may be too old.`;
      this.head_of_page.prepend(element("p", { class: "warning", role: "alert" }, text));
      throw error;
    }
  }

  // The pictures first, then what stands beside them; what was chosen meanwhile goes first.
  async drawn(turn) {
    const runs = this.data.runs;
    const looks = await Promise.all(runs.map((run) => this.look(run)));
    if (turn !== this.turn) return;
    renew(this.head_of_page, this.header());
    looks.forEach((children, k) => renew(this.columns[k].look, children));
    if (turn === 1) this.columns.forEach(({ look }) => toChosen(look.querySelector(".text")));
    await painted();
    performance.mark("pictured"); // what a test measures: the first picture stands
    const reads = await Promise.all(runs.map((run) => this.read(run)));
    if (turn !== this.turn) return;
    reads.forEach((children, k) => renew(this.columns[k].read, children));
    this.host.dataset.ready = String(turn);
  }

  header() {
    const runs = this.data.runs;
    const kinds = new Map(runs.flatMap((run) => run.kinds).map((kind) => [kind.name, kind.title]));
    const quantities = new Map(runs.flatMap((run) => run.quantities).map((one) => [one.name, one.title]));
    const n_images = Math.max(...runs.map((run) => run.images.length));
    const controls = [menu("Colour the text by", [...quantities], this.quantity, (value) => this.set({ quantity: value, patch: null }))];
    if (kinds.size) {
      controls.push(menu("Map", [...kinds], this.kind, (value) => this.set({ kind: value, head: null })));
      const check = element("input", { type: "checkbox", onchange: (event) => this.set({ is_same_scale: event.target.checked }) });
      check.checked = this.is_same_scale;
      controls.push(element("label", { class: "check" }, check, "one scale for all tokens"));
      const colours = element("input", { type: "checkbox", onchange: (event) => this.set({ is_coloured: event.target.checked }) });
      colours.checked = this.is_coloured;
      controls.push(element("label", { class: "check" }, colours, "picture in colour"));
    }
    if (n_images > 1) {
      const numbers = Array.from({ length: n_images }, (_, k) => [String(k), `image ${k}`]);
      controls.push(menu("Image", numbers, String(this.images[0]), (value) => this.set({ images: runs.map(() => Number(value)), patch: null })));
    }
    const { dataset } = this.host;
    const is_dark = dataset.theme ? dataset.theme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
    const turn = () => {
      dataset.theme = is_dark ? "light" : "dark";
      this.draw();
    };
    controls.push(element("button", { type: "button", onclick: turn }, is_dark ? "Light" : "Dark"));
    return [element("h1", {}, this.data.title), element("div", { class: "controls" }, ...controls)];
  }

  async look(run) {
    const name = element("h2", {}, run.name, element("small", {}, ` ${run.whose}`));
    const question = run.question && run.question !== this.data.title ? element("p", { class: "question" }, run.question) : null;
    const missing = run.left_out.map((one) => element("p", { class: "note warning" }, one));
    return [name, question, ...missing, await this.text(run), ...(await this.map(run))];
  }

  async read(run) {
    const sections = SECTIONS.filter((one) => one.has(run)).map(async (section) => {
      const details = element("details", { open: !this.closed.has(section.name), class: section.name }, element("summary", {}, section.title));
      const fill = async () => filled(details, {}, await section.draw(run, this));
      if (details.open) await fill();
      details.addEventListener("toggle", () => {
        this.closed[details.open ? "delete" : "add"](section.name);
        if (details.open && details.children.length === 1) fill();
      });
      return details;
    });
    return Promise.all(sections);
  }

  // The text, a button for every token that is explained.
  async text(run) {
    const { values, title, is_signed, unit } = await this.coloured(run);
    const all = await Promise.all(this.data.runs.map((one) => this.coloured(one)));
    const limit = Math.max(...all.map((one) => largest(one.values.filter((value) => !Number.isNaN(value))))) || 1;
    const chosen = this.target(run);
    const tokens = run.tokens.map(({ text, target }) => {
      if (target === null) return element("span", { class: "template" }, visible(text));
      const value = values[target];
      return element(
        "button",
        {
          type: "button",
          class: is_signed && value < 0 ? "token lowers" : "token",
          "data-target": target,
          "data-value": String(value),
          "aria-pressed": String(target === chosen),
          tabindex: target === chosen ? "0" : "-1",
          title: unit === "1" ? probability(value) : `${number(value, digitsFor(limit))} ${unit}`,
          style: { "background-color": shade(value, limit) },
          onclick: () => this.choose(run, target),
        },
        visible(text),
      );
    });
    const host = element("div", { class: "text", role: "group", "aria-label": `the text, coloured by ${title}` }, ...tokens);
    host.addEventListener("keydown", (event) => {
      const last = run.targets.length - 1;
      const now = this.target(run);
      const next = { ArrowLeft: now - 1, ArrowRight: now + 1, Home: 0, End: last }[event.key];
      if (next === undefined || next < 0 || next > last) return;
      event.preventDefault();
      this.choose(run, next);
    });
    const gauge = unit === "logit" && run.gauge ? `, ${run.gauge}` : "";
    const unit_text = unit === "1" ? "" : `, ${unit}${gauge}`;
    const legend = element("p", { class: "note" }, `Colours: ${title}${unit_text}; strongest: ${number(limit, digitsFor(limit))}.`);
    return element("div", {}, host, legend, this.hasPatch(run) ? this.unpatch() : null);
  }

  unpatch() {
    return element("button", { type: "button", class: "unpatch", onclick: () => this.set({ patch: null }) }, "Colour by the whole image again");
  }

  // Numbers that colour the text: a quantity, or what the chosen patch gives to every token.
  async coloured(run) {
    const { patch } = this;
    const kind = this.kindOf(run);
    if (this.hasPatch(run) && kind) return this.byPatch(run, kind, run.images[patch.image], patch.cell);
    const quantity = run.quantities.find((one) => one.name === this.quantity) ?? run.quantities[0];
    const { values } = await unpacked(quantity.values);
    return { values, title: quantity.title, is_signed: quantity.signed, unit: quantity.unit };
  }

  async byPatch(run, kind, image, chosen) {
    const limits = (await unpacked(kind.limits)).values;
    const array = await unpacked(kind.steps);
    const own = image.cell.flatMap((cell, k) => (cell === chosen ? [k] : []));
    const values = Float32Array.from(run.targets, (_, k) => {
      if (!kind.defined[k]) return NaN;
      const row = at(array, k);
      if (kind.cells) return row[chosen] * (limits[k] / 127);
      return total(own.map((one) => row[image.token[one]] * image.share[one])) * (limits[k] / 127);
    });
    const place = `row ${Math.floor(chosen / image.columns)}, column ${chosen % image.columns}`;
    return { values, title: `the patch at ${place}: ${kind.title}, rounded`, is_signed: true, unit: unitOf(kind) };
  }

  kindOf(run) {
    return run.kinds.find((one) => one.name === this.kind);
  }

  // The picture with the map of the chosen token, its scale, its sum and what it is.
  async map(run) {
    const number_of = Math.min(this.images[this.data.runs.indexOf(run)], run.images.length - 1);
    const image = run.images[number_of];
    if (!image) return [note("Text alone: there is no image, or its patches have no known place.")];
    const { patch } = this;
    const shown = await this.shownMap(run, image, number_of);
    const told = (cell, value) =>
      `row ${Math.floor(cell / image.columns)}, column ${cell % image.columns}: about ${number(value, digitsFor(shown.limit, 3))} ${shown.unit}`;
    const chosen = this.hasPatch(run) && patch !== null && patch.image === number_of ? patch.cell : null;
    const tell = element("output", { class: "tell", "aria-live": "polite" }, chosen === null ? " " : told(chosen, shown.grid[chosen]));
    const grid = `${image.rows} × ${image.columns}`;
    const drawing = picture(image, shown.grid, shown.limit, {
      chosen,
      is_coloured: this.is_coloured,
      label: `${shown.title} for “${run.targets[this.target(run)].token}”`,
      tell: (cell, value) => {
        tell.textContent = told(cell, value);
      },
      choose: (cell) => this.set({ patch: cell === null || chosen === cell ? null : { image: number_of, cell, grid } }),
    });
    return [drawing, tell, scale(shown.limit, shown.unit, shown.is_signed ?? true), ...shown.notes];
  }

  async shownMap(run, image, number_of) {
    const k = this.target(run);
    const rank = this.rank(run);
    if (rank !== null) return this.headMap(run, image, k, rank);
    const kind = this.kindOf(run);
    if (!kind || !kind.defined[k]) return this.noMap(image, kind ? "There is no such map of this token." : "This answer has no such map.");
    const unit = unitOf(kind);
    const { values } = await steps(kind, k);
    const limit = (await this.top()) || 1;
    const grid = kind.cells ? values : onGrid(values, image);
    const against = kind.reference ? ` The other image: ${kind.reference}.` : "";
    const legend = `${kind.title}: ${kind.is}. What it is not: ${kind.is_not}.${against} Orange is above zero, blue (hatched) below. ${this.data.rounded}`;
    const lines = [element("p", {}, ...(await this.sums(run, kind, k, number_of)), ...(await this.inside(kind, image, k))), note(legend)];
    return { grid, limit, title: kind.title, unit, notes: lines };
  }

  noMap(image, text) {
    const grid = new Float32Array(image.rows * image.columns);
    return { grid, limit: 1, title: "no map", unit: "", notes: [element("p", {}, text)] };
  }

  // What a map's patches sum to, where they sum to something; of several images each by itself.
  async sums(run, kind, k, number_of) {
    const sums = at(await unpacked(kind.sum), k);
    if (!kind.sums) return ["Its patches do not sum to what all of them do together. "];
    const unit = kind.cells ? "" : `logit, ${run.gauge}`;
    const shown = (value) => shownNumber(value, unit, digitsFor(Math.abs(value)));
    const own = ["Sum over all patches: ", shown(sums[Math.min(number_of, sums.length - 1)]), ". "];
    return sums.length > 1 ? [...own, `Of all ${sums.length} images: `, shown(total(sums)), ". "] : own;
  }

  // The end of the colour scale: one for both answers, and for all tokens where that is asked for.
  async top() {
    const runs = this.data.runs.filter((run) => this.kindOf(run));
    const limits = runs.map(async (run) => {
      const { values } = await unpacked(this.kindOf(run).limits);
      return this.is_same_scale ? largest(values) : values[this.target(run)];
    });
    return largest(await Promise.all(limits));
  }

  async inside(kind, image, k) {
    if (!kind.inside || !image.boxes.length) return [];
    const share = at(await unpacked(kind.inside), k)[0];
    return ["Share of its positive part inside the boxes: ", shownNumber(share), "; of a uniform map: ", shownNumber(image.chance), "."];
  }

  async headMap(run, image, k, rank) {
    const is_map = this.head_shows === "map";
    const title = `layer ${this.head[0]}, head ${this.head[1]}`;
    const of = is_map ? "direct" : "attention";
    const { values } = await steps(run.heads[of], k, rank);
    const limit = await this.overRuns("heads", async (one) => this.headLimit(one, of));
    const visual = run.sources.image.flatMap((one, p) => (one >= 0 ? [p] : []));
    const grid = onGrid(values, image, (token) => visual[token]);
    const choice = menu(title, [["map", "what it writes (Eq. 1)"], ["attention", "its attention"]], this.head_shows, (value) => this.set({ head_shows: value }));
    const back = element("button", { type: "button", class: "unhead", onclick: () => this.set({ head: null }) }, "All heads again");
    const unit = is_map ? "logit" : "of its attention";
    return { grid, limit: limit || 1, title, unit, is_signed: is_map, notes: [choice, back, note(this.data.rounded)] };
  }

  // The largest value of the chosen head's row on any image token; 0 where the row is not kept.
  async headLimit(run, of) {
    const rank = this.rank(run);
    if (rank === null) return 0;
    const { values } = await steps(run.heads[of], this.target(run), rank);
    return largest(values.filter((_, p) => run.sources.image[p] >= 0));
  }
}

const unitOf = (kind) => (kind.cells ? "(the method's own unit)" : "logit");

function toChosen(text) {
  const chosen = text.querySelector('[aria-pressed="true"]');
  if (chosen) text.scrollTop = chosen.offsetTop - text.offsetTop - text.clientHeight / 2;
}

// When the browser has drawn what is there; a page that nobody looks at is never drawn.
function painted() {
  return new Promise((done) => {
    requestAnimationFrame(() => setTimeout(done));
    setTimeout(done, 100);
  });
}

// New children in place of the old; the element in the same place gets the focus back.
function renew(host, children) {
  const path = [];
  for (let one = document.activeElement; host.contains(one) && one !== host; one = one.parentElement) {
    path.unshift([...one.parentElement.children].indexOf(one));
  }
  const key = host.contains(document.activeElement) ? document.activeElement.dataset.key : null;
  const scroll = host.querySelector(".text")?.scrollTop;
  host.replaceChildren(...children.filter((one) => one !== null));
  if (scroll) host.querySelector(".text").scrollTop = scroll;
  if (!path.length) return;
  const found = (key && host.querySelector(`[data-key="${CSS.escape(key)}"]`)) || path.reduce((one, k) => one?.children[k], host);
  const text = found?.closest(".text"); // among tokens the focus goes with the choice
  (text?.querySelector('[aria-pressed="true"]') ?? found)?.focus({ preventScroll: text === null });
}

function mount(host, data) {
  host.classList.add("vlm-page");
  if (!("DecompressionStream" in window)) {
    host.replaceChildren("This page needs a browser of 2023 or later: it cannot unpack its numbers here.");
    return null;
  }
  const view = new View(host, data);
  view.draw();
  return view;
}

// In a notebook, anywidget calls `render`; a page calls `mount`.
function render({ model, el }) {
  const host = element("main");
  el.append(host);
  mount(host, model.get("page"));
}

export default { render, mount };
