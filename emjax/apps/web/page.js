// What the page does. Texts of files and of work are set as text, never as HTML.
"use strict";

const token = document.querySelector("meta[name=token]").content;
const at = (id) => document.getElementById(id);
const files = new Map(); // by number: {label, facts, element}
let running = null;

function make(tag, text = "", properties = {}) {
  const element = document.createElement(tag);
  element.textContent = text;
  return Object.assign(element, properties);
}

async function ask(method, path, body) {
  const options = { method, headers: { "X-Emjax-Token": token }, body };
  const answer = await fetch(path, options);
  const found = await answer.json().catch(() => ({ error: `${answer.status} ${answer.statusText}` }));
  if (!answer.ok) {
    const reason = found.error || `${answer.status} ${answer.statusText}`;
    throw Object.assign(new Error(reason), { status: answer.status });
  }
  return found;
}

function say(text, isError = false) {
  at("status").replaceChildren(make("pre", text, { className: isError ? "error" : "" }));
}

// A server that is busy, or a connection that was away for a moment, does not end the work.
async function patiently(question) {
  for (let failed = 0; ; failed += 1) {
    try {
      return await question();
    } catch (error) {
      if (failed >= 20 || (error.status && error.status !== 503)) throw error;
      await pause(1 + failed / 2);
    }
  }
}

const pause = (seconds) => new Promise((go) => setTimeout(go, 1000 * seconds));

async function ended(work, tell = () => {}) {
  for (;;) {
    const found = await patiently(() => ask("GET", `/work/${work}`));
    tell(found);
    if (!["waiting", "running"].includes(found.state)) return found;
    await pause(0.5);
  }
}

// The length of a scale bar of about a quarter of the picture: 1, 2 or 5 times a power of ten.
function barOf(facts) {
  const nm = facts.nm_per_pixel ? facts.nm_per_pixel[1] : 0;
  const whole = facts.width * (nm || 1);
  const power = 10 ** Math.floor(Math.log10(whole / 4));
  const length = [5, 2, 1].map((k) => k * power).find((each) => each <= whole / 4) || power;
  const number = Number(length.toPrecision(1));
  const bar = make("div", nm ? (number >= 1000 ? `${number / 1000} µm` : `${number} nm`)
    : `${number} px`, { className: "bar" });
  bar.style.width = `${(100 * length) / whole}%`;
  return bar;
}

function figure(source, caption, facts) {
  const element = make("figure");
  element.append(make("img", "", { src: source, alt: caption }));
  if (facts) element.append(barOf(facts));
  element.append(make("figcaption", caption));
  return element;
}

function describe(facts) {
  const size = facts.nm_per_pixel
    ? `${facts.nm_per_pixel.map((side) => Number(side.toPrecision(6))).join(" x ")} nm per pixel`
      + ` (${facts.origin})`
    : "pixel size unknown: sizes will be in pixels";
  const texts = [`${facts.height} x ${facts.width} pixels, ${facts.dtype}`, size,
    `grey values shown: ${facts.range.map((end) => Number(end.toPrecision(6))).join(" to ")}`];
  if (facts.planes > 1) texts.unshift(`${facts.planes} planes, the first is shown`);
  if (facts.rows) texts.push(`the first row is taken for the ${facts.rows}; the file does not say`);
  if (facts.banner) texts.push(`a banner, border or scale bar is in ${facts.banner}`);
  return texts;
}

async function add(label, send) {
  const element = make("section");
  element.append(make("h2", label), make("pre", "is sent ..."));
  at("files").append(element);
  let sent = null;
  try {
    sent = await send();
    element.lastChild.textContent = "is read ...";
    const found = await ended(sent.work);
    if (found.state !== "done") {
      const reason = found.lines.join("\n") || found.state;
      throw Object.assign(new Error(reason), { isOfFile: found.state === "failed" });
    }
    const facts = found.result;
    element.replaceChildren(make("h2", sent.label));
    const remove = make("button", "Remove", { onclick: () => drop(sent.file) });
    remove.setAttribute("aria-label", `Remove ${sent.label}`);
    const list = make("ul");
    [...describe(facts), ...found.lines].forEach((text) => list.append(make("li", text)));
    const pictures = make("div", "", { className: "pictures" });
    pictures.append(figure(`/work/${sent.work}/picture.png`, `${sent.label}, as it is`, facts));
    element.append(list, remove, pictures);
    files.set(sent.file, { label: sent.label, facts, element, pictures });
  } catch (error) {
    element.lastChild.textContent = error.message;
    element.lastChild.className = "error";
    if (sent && error.isOfFile) ask("DELETE", `/files/${sent.file}`).catch(() => {});
  }
  update();
}

async function drop(number) {
  await ask("DELETE", `/files/${number}`).catch(() => {});
  files.get(number).element.remove();
  files.delete(number);
  update();
}

function update() {
  at("run").disabled = files.size === 0 || running !== null;
  at("stop").disabled = running === null;
}

function chosen() {
  const flags = {
    model: at("model").value,
    range: at("range").value.trim(),
    mrc_rows: at("mrc_rows").value,
    cut_banner: at("cut_banner").checked,
    no_split: at("no_split").checked,
    no_resample: at("no_resample").checked,
  };
  for (const name of ["range", "mrc_rows"]) if (!flags[name]) delete flags[name];
  if (at("pixel_size").value) flags.pixel_size = Number(at("pixel_size").value);
  if (at("min_size").value) flags.min_size = Number(at("min_size").value);
  return flags;
}

function link(work, name, label) {
  const item = make("li");
  const saved = encodeURIComponent(label);
  item.append(make("a", label, { href: `/work/${work}/${name}?as=${saved}`, download: label }));
  return item;
}

function show(work, found, size) {
  const result = found.result;
  for (const [number, file] of files) {
    const own = result.files[number] || [];
    file.pictures.querySelectorAll(".made").forEach((each) => each.remove());
    const small = own.find((name) => name.endsWith(".overlay.png"));
    if (small) {
      const picture = figure(`/work/${work}/${small.replace(".overlay.png", ".small.png")}`,
        "outlines of the mask", size ? { ...file.facts, nm_per_pixel: [size, size] } : file.facts);
      picture.className = "made";
      file.pictures.append(picture);
    }
    const check = own.find((name) => name.endsWith(".check.html"));
    if (check) {
      const frame = make("iframe", "", { src: `/work/${work}/${check}`, className: "made",
        title: `what was taken away from ${file.label}` });
      file.pictures.append(frame);
    }
    const list = make("ul", "", { className: "made" });
    const stem = file.label.replace(/\.[^.]*$/, "");
    own.forEach((name) => {
      const end = name.split("/").pop().replace(/^micrograph-\d+/, "");
      list.append(link(work, name, `${stem}.emjax${end}`));
    });
    file.pictures.append(list);
  }
  const results = at("results");
  results.replaceChildren();
  if (result.sizes && result.sizes.includes("sizes/report.html")) {
    results.append(make("h2", "Sizes"));
    const list = make("ul");
    result.sizes.forEach((name) => list.append(link(work, name, name.split("/").pop())));
    const report = { src: `/work/${work}/sizes/report.html`, title: "sizes of the particles" };
    results.append(list, make("iframe", "", report));
  }
}

// `begin` gives the number of a run and the pixel size that was typed for it; `listed` ends when
// its files are on the page.
async function follow(begin, listed = null) {
  at("run").disabled = true;
  at("results").replaceChildren();
  document.querySelectorAll(".made").forEach((each) => each.remove());
  const begun = Date.now();
  try {
    const { work, pixel_size: size } = await begin();
    running = work;
    update();
    const found = await ended(work, ({ state, lines }) => {
      const seconds = Math.round((Date.now() - begun) / 1000);
      say([`${state}, ${seconds} s`, ...lines.slice(-6)].join("\n"));
    });
    const seconds = ((Date.now() - begun) / 1000).toFixed(1);
    const took = listed ? "" : ` after ${seconds} s`; // nobody knows after the page was loaded again
    say([`${found.state}${took}`, ...found.lines].join("\n"), found.state !== "done");
    await listed;
    if (found.result) show(work, found, size);
  } catch (error) {
    say(error.message, true);
  }
  running = null;
  update();
}

function run() {
  const order = { files: [...files.keys()], flags: chosen() };
  return follow(async () => {
    const { work } = await ask("POST", "/work", JSON.stringify(order));
    return { work, pixel_size: order.flags.pixel_size };
  });
}

async function addAll(list, folders = []) {
  for (const file of list) {
    const name = encodeURIComponent(file.name);
    await add(file.name, async () => {
      if (folders.includes(file.name)) throw new Error("a folder; drop the files in it");
      return ask("POST", `/files?name=${name}`, file);
    });
  }
}

// The names of folders among what was dropped; browsers list them as files.
function foldersOf(transfer) {
  const entries = [...transfer.items].map((item) => item.webkitGetAsEntry());
  return entries.filter((entry) => entry && entry.isDirectory).map((entry) => entry.name);
}

at("choose").addEventListener("change", (event) => {
  addAll([...event.target.files]);
  event.target.value = "";
});
for (const kind of ["dragenter", "dragover", "dragleave", "drop"]) {
  document.addEventListener(kind, (event) => {
    event.preventDefault();
    at("drop").classList.toggle("over", kind === "dragenter" || kind === "dragover");
    if (kind === "drop") addAll([...event.dataTransfer.files], foldersOf(event.dataTransfer));
  });
}
at("run").addEventListener("click", run);
at("stop").addEventListener("click", () => running && ask("DELETE", `/work/${running}`));
ask("GET", "/files").then(({ files: earlier, run: last }) => { // before it was loaded again
  const listed = Promise.all(earlier.map((file) => add(file.label, async () => file)));
  if (last) follow(async () => last, listed);
});
setInterval(() => ask("POST", "/here").catch(() => {}), 20000);
