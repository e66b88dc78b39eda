"use strict";
// Shows what /api/snapshot and /api/events tell. Text goes into the page as textContent only: names of files are chosen
// by whoever may drop a file, and must stay text.

const LOOK_EVERY_MS = 3000;
const CONNECT_AGAIN_MS = 5000;
const LATEST_SHOWN = 12;
const UNDER_WAY_SHOWN = 16;
const STEPS = ["check", "token", "session", "upload", "put", "message", "filing"];

const at = (id) => document.getElementById(id);
let picture = null;
let seenAt = 0;  // when the picture came, by this page's clock
let seenAtTime = null;
let source = null;
let poll = null;
const wentBack = new Map();  // delivery id -> {words, problem}

// --- small parts ---------------------------------------------------------------------------------------------------

function make(tag, name, text) {
  const element = document.createElement(tag);
  if (name) element.className = name;
  if (text !== undefined) element.textContent = text;
  return element;
}

function say(element, text) {
  // Only when it differs: what is read aloud is read once, and a selection stays.
  if (element.textContent !== text) element.textContent = text;
}

function keyed(parent, items, keyOf, create, update) {
  // Elements stay where they are as long as their item does, so that the focus and a pressed button survive an update.
  const known = new Map();
  for (const child of parent.children) known.set(child.itemKey, child);
  let place = parent.firstElementChild;
  for (const item of items) {
    const key = keyOf(item);
    let element = known.get(key);
    known.delete(key);
    if (!element) {
      element = create(item);
      element.itemKey = key;
    }
    if (element === place) place = place.nextElementSibling;
    else parent.insertBefore(element, place);
    update(element, item);
  }
  for (const gone of known.values()) gone.remove();
}

const plural = (count, one, many) => `${count.toLocaleString("en")} ${count === 1 ? one : many}`;

// A name that cannot be shown as it is comes with its bytes in base64, and goes back with them.
const inboxOf = (one, key) => ({ inbox: one[key], ...(one[`${key}_base64`] && { inbox_base64: one[`${key}_base64`] }) });

function seconds(s) {
  if (s < 0.9995) return `${Math.round(s * 1000)}\u00a0ms`;
  if (s < 10) return `${s.toFixed(1)}\u00a0s`;
  return age(s);
}

function age(s) {
  s = Math.max(0, Math.round(s));
  if (s < 90) return `${s} s`;
  const minutes = Math.round(s / 60);
  if (minutes < 90) return `${minutes} min`;
  const hours = Math.floor(minutes / 60);
  return hours < 48 ? `${hours} h ${minutes % 60} min` : `${Math.round(hours / 24)} days`;
}

function bytes(count) {
  if (count < 1024) return `${count} B`;
  let unit = 0;
  for (count /= 1024; count >= 1000 && unit < 3; unit++) count /= 1024;
  return `${count < 10 ? count.toFixed(1) : Math.round(count)} ${["KiB", "MiB", "GiB", "TiB"][unit]}`;
}

function clock(moment) {
  const day = moment.toDateString() === new Date().toDateString() ? "" : `${moment.getDate()}.${moment.getMonth() + 1}. `;
  return day + moment.toLocaleTimeString("en-GB");
}

const plain = (word) => word.replaceAll("_", " ");
const elapsed = () => (performance.now() - seenAt) / 1000;

// --- the page ------------------------------------------------------------------------------------------------------

function show() {
  if (!picture) return;
  const { status, failures, last_hours: hours } = picture;
  say(at("version"), status.version);
  showBanner(status);
  keyed(at("inboxes"), status.inboxes, (inbox) => inbox.name, makeInbox, showInbox);
  showUnderWay(status.under_way);
  showFailures(failures, status.latest);
  showHours(hours);
  showLatest(status.latest);
  const paused = status.platform.state === "paused" || status.inboxes.some((inbox) => inbox.state === "paused");
  const waiting = status.inboxes.reduce((sum, inbox) => sum + inbox.waiting, 0);
  document.title = paused ? "attachd: paused" : waiting ? `attachd: ${waiting} waiting` : "attachd";
}

function showBanner(status) {
  const pauses = [];
  if (status.platform.state === "paused") pauses.push({ key: "", title: "Everything is paused", asks: { inbox: null }, ...pauseOf(status.platform) });
  for (const inbox of status.inboxes) {
    if (inbox.state === "paused") pauses.push({ key: `inbox ${inbox.name}`, title: `${inbox.name} is paused`, asks: inboxOf(inbox, "name"), ...pauseOf(inbox) });
  }
  keyed(at("banner"), pauses, (pause) => pause.key, makeNotice, showNotice);
}

const pauseOf = ({ reason, detail, advice, retry_in_s, paused_s }) => ({ reason, detail, advice, retry_in_s, paused_s });

function makeNotice(pause) {
  const notice = make("div", "notice");
  const words = make("div");
  words.append(make("h3"), make("p", "why"), make("p", "advice"), make("p", "when"));
  words.lastChild.append(make("span", "next"), make("span", "ticking"));
  words.lastChild.lastChild.setAttribute("aria-hidden", "true");
  const button = make("button", "", "Try now");
  button.type = "button";
  button.addEventListener("click", () => change(button, "api/resume", pause.asks));
  notice.append(words, button);
  return notice;
}

function showNotice(notice, pause) {
  const byHand = pause.reason === "paused_by_operator";
  say(notice.querySelector("h3"), byHand ? `${pause.title} by an operator` : `${pause.title}: ${plain(pause.reason)}`);
  say(notice.querySelector("button"), byHand ? "Resume" : "Try now");
  say(notice.querySelector(".why"), pause.detail);
  say(notice.querySelector(".advice"), pause.advice || "");
  const left = pause.retry_in_s === null ? null : pause.retry_in_s - elapsed();
  // The moment is what is read aloud; the seconds that pass beside it are for the eye.
  if (left === null) {
    notice.nextAt = null;
    say(notice.querySelector(".next"), byHand ? "It goes on when somebody resumes it." : "It goes on when this is mended.");
  } else {
    const moment = Date.now() + left * 1000;
    if (notice.nextAt == null || Math.abs(moment - notice.nextAt) > 2000) {
      notice.nextAt = moment;
      say(notice.querySelector(".next"), `Tries next at ${clock(new Date(moment))}`);
    }
  }
  const since = `paused for ${age(pause.paused_s + elapsed())}`;
  say(notice.querySelector(".ticking"), left === null ? ` ${since[0].toUpperCase()}${since.slice(1)}.` : `, in ${age(left)}; ${since}.`);
}

function makeInbox(inbox) {
  const card = make("article", "card");
  const top = make("div", "top");
  const button = make("button");
  button.type = "button";
  button.addEventListener("click", () => change(button, `api/${button.does}`, card.asks));
  top.append(make("h3", "name"), make("span", "pill"), button);
  const figures = make("dl", "figures");
  for (const word of ["waiting", "under way", "sent", "failed"]) {
    const one = make("div", word.replace(" ", "-"));
    one.append(make("dt", "", word), make("dd"));
    figures.append(one);
  }
  card.append(top, make("p", "path name"), figures, make("p", "foot"));
  return card;
}

function showInbox(card, inbox) {
  card.asks = inboxOf(inbox, "name");
  const paused = inbox.state === "paused";
  say(card.querySelector("h3"), inbox.name);
  const pill = card.querySelector(".pill");
  say(pill, paused ? "paused" : "ok");
  pill.classList.toggle("paused", paused);
  const button = card.querySelector("button");
  button.does = paused ? "resume" : "pause";
  say(button, paused ? "Resume" : "Pause");
  button.setAttribute("aria-label", `${button.textContent} ${inbox.name}`);
  say(card.querySelector(".path"), inbox.path);
  for (const key of ["waiting", "under_way", "sent", "failed"]) {
    say(card.querySelector(`.${key.replace("_", "-")} dd`), inbox[key].toLocaleString("en"));
  }
  card.querySelector(".failed").classList.toggle("some", inbox.failed > 0);
  const oldest = inbox.oldest_waiting_s === null || !inbox.waiting ? "Nothing waits." : `The oldest has waited ${age(inbox.oldest_waiting_s + elapsed())}.`;
  const reasons = Object.entries(inbox.ignored_by_reason).filter(([, count]) => count);
  const ignored = reasons.length ? ` Left alone: ${reasons.map(([reason, count]) => `${count} ${plain(reason)}`).join(", ")}.` : "";
  say(card.querySelector(".foot"), oldest + ignored);
}

function showUnderWay(all) {
  const shown = all.slice(0, UNDER_WAY_SHOWN);
  say(at("under-way-count"), all.length > shown.length ? `${shown.length} of ${all.length}` : "");
  at("under-way-empty").hidden = all.length > 0;
  keyed(at("under-way"), shown, (one) => one.delivery_id, () => {
    const item = make("li");
    const row = make("div", "row");
    row.append(make("span", "name"), make("span", "right"));
    const bar = make("progress");
    item.append(row, bar, make("p", "sub"));
    return item;
  }, (item, one) => {
    say(item.querySelector(".name"), one.file);
    say(item.querySelector(".right"), `${bytes(Math.min(one.bytes_sent, one.size))} of ${bytes(one.size)}`);
    const bar = item.querySelector("progress");
    bar.max = Math.max(1, one.size);
    bar.value = Math.min(one.bytes_sent, one.size);
    bar.setAttribute("aria-label", `${one.file}: bytes sent`);
    say(item.querySelector(".sub"), `${one.inbox} · ${stepWords(one)}`);
  });
}

function stepWords(one) {
  if (one.step) return { check: "checking the file", token: "getting a token", session: "opening the guest session", upload: "asking for a place", put: "uploading", message: "posting the message", filing: "filing" }[one.step] || one.step;
  const left = one.next_try_in_s === null ? null : one.next_try_in_s - elapsed();
  const why = one.reason ? ` after ${plain(one.reason)}` : "";
  if (left === null) return `waits${why}`;
  return left > 0.5 ? `attempt ${one.attempts + 1} in ${age(left)}${why}` : "waits for its turn";
}

function showFailures(failures, latest) {
  // A file that was sent after it had failed is no trouble any more.
  const sent = new Map();
  for (const one of latest) if (one.state === "sent") sent.set(`${one.inbox}\n${one.file}`, one.ended_at);
  const open = failures.filter((one) => !(sent.get(`${one.inbox}\n${one.file}`) > one.updated_at));
  at("failures-section").hidden = open.length === 0;
  say(at("failures-count"), open.length < 20 ? String(open.length) : `the latest ${open.length}`);
  keyed(at("failures"), open, (one) => one.delivery_id, makeFailure, showFailure);
}

function makeFailure(one) {
  const item = make("li");
  const words = make("div");
  const what = make("div", "what");
  what.append(make("span", "name"), make("span", "reason"), make("span", "sub"));
  words.append(what, make("p", "said"), make("p", "advice"));
  const button = make("button", "retry", "Send again");
  button.type = "button";
  button.addEventListener("click", () => retry(button, one));
  item.append(words, button);
  return item;
}

function showFailure(item, one) {
  say(item.querySelector(".name"), one.file);
  say(item.querySelector(".reason"), plain(one.reason));
  say(item.querySelector(".sub"), `${one.inbox} · ${clock(new Date(one.updated_at))} · ${plural(one.attempts, "attempt", "attempts")} · ${bytes(one.size)}`);
  say(item.querySelector(".said"), one.detail);
  say(item.querySelector(".advice"), one.advice || "");
  item.querySelector(".retry")?.setAttribute("aria-label", `Send again: ${one.file}`);
  const outcome = wentBack.get(one.delivery_id);
  if (outcome && !item.querySelector(".done")) {
    const words = make("p", outcome.problem ? "done problem" : "done", outcome.words);
    words.tabIndex = -1;
    const button = item.querySelector(".retry");
    const focused = document.activeElement === button;
    button.replaceWith(words);
    if (focused) words.focus();
  }
}

function showHours(hours) {
  const sent = hours.sent.reduce((a, b) => a + b, 0);
  const failed = hours.failed.reduce((a, b) => a + b, 0);
  const words = `${sent.toLocaleString("en")} sent, ${failed.toLocaleString("en")} failed`;
  say(at("hours-count"), words);
  const most = Math.max(1, ...hours.sent.map((count, i) => count + hours.failed[i]));
  say(at("hours-most"), most > 1 || sent + failed ? most.toLocaleString("en") : "");
  const svg = at("bars");
  svg.setAttribute("aria-label", `${words} in the last six hours; at most ${most} in ten minutes`);
  const wide = 360 / hours.sent.length;
  const wanted = [];
  hours.sent.forEach((count, i) => {
    const begins = hours.begins_at + i * hours.bin_s;
    const x = i * wide + 1;
    if (begins + hours.bin_s <= hours.complete_since) wanted.push(["unknown", x, 97, 3]);
    const up = (count / most) * 100;
    if (count) wanted.push(["sent", x, 100 - up, up]);
    const over = hours.failed[i] ? Math.max(2.5, (hours.failed[i] / most) * 100) : 0;
    if (over) wanted.push(["failed", x, Math.max(0, 100 - up - over), over]);
  });
  const drawn = JSON.stringify(wanted);
  if (svg.drawn === drawn) return;
  svg.drawn = drawn;
  svg.replaceChildren(...wanted.map(([name, x, y, height]) => {
    const rect = document.createElementNS("http://www.w3.org/2000/svg", "rect");
    rect.setAttribute("class", name);
    for (const [key, value] of Object.entries({ x, y, height, width: wide - 2 })) rect.setAttribute(key, value);
    return rect;
  }));
  const span = hours.sent.length * hours.bin_s;
  const labels = [0, 1, 2, 3].map((third) => third === 3 ? "now" : hourOf(hours.begins_at + (span * third) / 3));
  at("hours-axis").replaceChildren(...labels.map((label) => make("span", "", label)));
  say(at("hours-since"), hours.complete_since > hours.begins_at + hours.bin_s ? `; counted since ${hourOf(hours.complete_since)}` : "");
}

const hourOf = (s) => new Date(s * 1000).toLocaleTimeString("en-GB", { hour: "2-digit", minute: "2-digit" });

function showLatest(all) {
  const shown = all.toSorted((a, b) => (a.ended_at < b.ended_at ? 1 : a.ended_at > b.ended_at ? -1 : 0)).slice(0, LATEST_SHOWN);
  at("latest-empty").hidden = shown.length > 0;
  at("legend").hidden = shown.length === 0;
  const longest = Math.max(...shown.map((one) => one.took_s), 0.001);
  keyed(at("latest"), shown, (one) => one.delivery_id, (one) => {
    const item = make("li");
    const file = make("div", "file");
    file.append(make("div", "name", one.file), make("p", "sub"));
    const way = make("div", "way");
    const bar = make("div", "steps");
    bar.setAttribute("aria-hidden", "true");
    for (const { step, took_s } of one.steps) {
      const part = make("i", STEPS.includes(step) ? `step-${step}` : "");
      part.style.flexGrow = String(1 + took_s * 1000);
      bar.append(part);
    }
    way.append(bar, make("p", "words", one.steps.map(({ step, took_s }) => `${step}\u00a0${seconds(took_s)}`).join(" · ")));
    item.append(make("span", "at", clock(new Date(one.ended_at))), file, way, make("span", "took", seconds(one.took_s)));
    return item;
  }, (item, one) => {
    item.querySelector(".steps").style.width = `${Math.max(6, (one.took_s / longest) * 100)}%`;
    const sub = item.querySelector(".sub");
    const words = one.state === "failed" ? [one.inbox, bytes(one.size)] : [one.inbox, bytes(one.size), `sent${one.attempts > 1 ? ` at attempt ${one.attempts}` : ""}`];
    if (sub.dataset.said) return;
    sub.dataset.said = "yes";
    sub.append(words.join(" · "));
    if (one.state === "failed") sub.append(" · ", make("span", "reason", plain(one.reason || "failed")));
  });
}

at("legend").append(...STEPS.map((step) => {
  const key = make("span");
  key.append(make("i", `step-${step}`), step);
  return key;
}));

// --- changes -------------------------------------------------------------------------------------------------------

function takeTokenFromLink() {
  const given = new URLSearchParams(location.hash.slice(1)).get("token");
  if (!given) return;
  sessionStorage.setItem("attachd-token", given);
  history.replaceState(null, "", location.pathname);
}

function askForToken() {
  const dialog = at("ask");
  return new Promise((answer) => {
    dialog.onclose = () => answer(dialog.given || null);
    dialog.given = "";
    at("token").value = "";
    dialog.showModal();
  });
}

at("ask-form").addEventListener("submit", (event) => {
  event.preventDefault();
  at("ask").given = at("token").value.trim();
  at("ask").close();
});
at("ask-cancel").addEventListener("click", () => at("ask").close());

async function post(path, body) {
  for (;;) {
    let token = sessionStorage.getItem("attachd-token");
    if (!token) {
      token = await askForToken();
      if (!token) return null;
      sessionStorage.setItem("attachd-token", token);
    }
    const headers = { "Content-Type": "application/json", "X-Attachd-Token": encodeURI(token) };
    const answer = await fetch(path, { method: "POST", headers, body: JSON.stringify(body) });
    const told = await answer.json();
    if (answer.status === 401) {
      sessionStorage.removeItem("attachd-token");
      continue;
    }
    if (!answer.ok) throw new Error(told.error);
    return told;
  }
}

async function change(button, path, body) {
  button.disabled = true;
  try {
    if (await post(path, body)) await look();
  } catch (error) {
    tell(`That did not work: ${error.message}`);
  } finally {
    button.disabled = false;
    button.focus();
  }
}

async function retry(button, one) {
  button.setAttribute("aria-disabled", "true");
  try {
    const told = await post("api/retry", { what: one.delivery_id, ...inboxOf(one, "inbox") });
    if (told) {
      const result = told[0];
      const problem = result ? result.problem : "It is not in failed/ any more.";
      wentBack.set(one.delivery_id, { problem: Boolean(problem), words: problem || `Back in ${result.inbox} as ${result.name}.` });
      tell(`${one.file}: ${wentBack.get(one.delivery_id).words}`);
      show();
    }
  } catch (error) {
    tell(`${one.file}: that did not work: ${error.message}`);
  } finally {
    button.removeAttribute("aria-disabled");
  }
}

function tell(words) {
  at("failures-section").hidden = false;
  say(at("note"), words);
}

// --- live ----------------------------------------------------------------------------------------------------------

function take(text) {
  picture = JSON.parse(text);
  seenAt = performance.now();
  seenAtTime = new Date();
  show();
}

function link(state, words) {
  at("link").className = state;
  say(at("link-words"), words);
}

function connect() {
  source = new EventSource("api/events");
  source.addEventListener("snapshot", (event) => {
    clearInterval(poll);
    poll = null;
    take(event.data);
    link("live", "live");
  });
  source.addEventListener("error", () => {
    if (poll === null) {
      poll = setInterval(look, LOOK_EVERY_MS);
      look();
    }
    if (source.readyState === EventSource.CLOSED) setTimeout(connect, CONNECT_AGAIN_MS);
  });
}

async function look() {
  try {
    const answer = await fetch("api/snapshot", { signal: AbortSignal.timeout(5000) });
    if (!answer.ok) throw new Error();
    take(await answer.text());
    if (poll !== null) link("polling", `live updates broke off; looking every ${LOOK_EVERY_MS / 1000} s`);
  } catch {
    if (poll !== null) link("lost", seenAtTime ? `connection lost; this is from ${clock(seenAtTime)}` : "connection lost");
  }
}

takeTokenFromLink();
addEventListener("hashchange", takeTokenFromLink);
setInterval(show, 1000);
connect();
