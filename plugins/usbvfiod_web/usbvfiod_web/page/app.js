// The page: what the server sends as `view` is shown, and what is pressed is sent to it.

import { deviceCard } from "./devices.js";
import { el, follow } from "./dom.js";
import { vmCard } from "./vms.js";

const LINES = 200;
const AGAIN = 2000; // ms

const $ = (id) => document.getElementById(id);
if (location.search) history.replaceState(null, "", location.pathname); // the cookie has the token now

/** Do something, and say what has become of it. `button` waits meanwhile. */
async function act(button, action, given) {
  button.disabled = true;
  button.setAttribute("aria-busy", "true");
  try {
    const response = await fetch(`do/${action}`, {
      method: "POST",
      headers: { "Content-Type": "application/json" },
      body: JSON.stringify(given),
    });
    const answer = await response.json();
    say(answer.text, !answer.ok);
    if (answer.download) el("a", { href: answer.download, download: answer.file }).click();
  } catch (error) {
    say(`That did not reach the server: ${error.message}`, true);
  } finally {
    button.disabled = false;
    button.removeAttribute("aria-busy");
  }
}

let silence = 0;
function say(text, bad) {
  const said = $("said");
  said.querySelector("p").textContent = text;
  said.classList.toggle("bad", bad);
  said.classList.toggle("open", text !== "");
  clearTimeout(silence);
  if (text && !bad) silence = setTimeout(() => say("", false), 6000);
}
$("said").querySelector("button").addEventListener("click", () => say("", false));

function show(view) {
  $("host").textContent = view.host;
  document.title = `usbvfiod ${view.host}`;
  const names = view.vms.filter((vm) => vm.up).map((vm) => vm.name);
  follow($("devices"), view.devices, (device) => device.id, () => deviceCard(act, () => names));
  follow($("vms"), view.vms, (vm) => vm.name, () => vmCard(act, () => names));
  for (const card of document.querySelectorAll(".card")) card.refresh?.(names);
  $("no-devices").hidden = view.devices.length > 0;
  $("no-vms").hidden = view.vms.length > 0;
  if ($("kinds").children.length !== view.kinds.length) {
    $("kinds").replaceChildren(...view.kinds.map((kind) => el("option", { value: kind })));
  }
}

function log(line) {
  const time = new Date(line.time * 1000);
  const list = $("log");
  const below = list.scrollHeight - list.scrollTop - list.clientHeight < 4;
  list.append(
    el(
      "li",
      { class: line.bad ? "bad" : "" },
      el("time", { datetime: time.toISOString() }, time.toLocaleTimeString("en-GB")),
      el("b", {}, line.vm),
      el("span", {}, line.text),
    ),
  );
  while (list.children.length > LINES) list.firstElementChild.remove();
  if (below) list.scrollTop = list.scrollHeight;
}

function link(state, text) {
  $("link").className = state;
  if ($("link").textContent !== text) $("link").textContent = text;
  document.body.classList.toggle("lost-link", state === "lost");
}

let last = 0;
function listen() {
  const events = new EventSource("events");
  events.addEventListener("open", () => link("live", "Live"));
  events.addEventListener("view", (event) => show(JSON.parse(event.data)));
  events.addEventListener("line", (event) => {
    const line = JSON.parse(event.data);
    if (line.time < last) return; // seen before the connection broke
    last = line.time;
    log(line);
  });
  events.addEventListener("error", async () => {
    link("lost", "Not connected: usbvfiod web does not answer");
    if (events.readyState !== EventSource.CLOSED) return; // the browser tries again by itself
    try {
      const answer = await fetch("./", { method: "HEAD" });
      if (answer.status === 403) {
        link("lost", "Not connected: open the address that usbvfiod web prints now");
        return;
      }
    } catch {
      // it is away
    }
    setTimeout(listen, AGAIN);
  });
}
listen();
