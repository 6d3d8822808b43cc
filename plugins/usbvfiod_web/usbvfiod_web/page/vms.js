// Cards of VMs, with their ports and what is attached to them.

import { el, follow, offer, write } from "./dom.js";
import { count, mood, speed } from "./format.js";

const HISTORY = 60; // views, about as many seconds

export function vmCard(act, names) {
  let vm;
  const name = el("h3");
  const badge = el("span", { class: "badge" });
  const facts = el("p", { class: "facts" });
  const reason = el("p", { class: "reason" });
  const ports = el("ul", { class: "ports", "aria-label": "Ports of the guest's controller" });
  const attached = el("ul", { class: "attached" });
  const none = el("p", { class: "facts" }, "Nothing is attached.");
  const spec = el("input", { list: "kinds", required: true, autocomplete: "off", autocapitalize: "off", spellcheck: "false" });
  const button = el("button", {}, "Attach");
  const label = el("label", {}, "Specification");
  const form = el("form", { class: "row", onsubmit: submit }, label, spec, button);
  const other = el("details", {}, el("summary", {}, "Attach something else"), form);
  const card = el(
    "li",
    { class: "card", tabindex: "-1" },
    el("div", { class: "title" }, name, badge),
    facts,
    reason,
    ports,
    none,
    attached,
    other,
  );

  async function submit(event) {
    event.preventDefault();
    await act(button, "attach", { vm: vm.name, device: spec.value.trim() });
  }

  card.update = (now) => {
    vm = now;
    card.classList.toggle("gone", !vm.up);
    write(name, vm.name);
    spec.id = `spec-${vm.name}`;
    label.htmlFor = spec.id;
    button.setAttribute("aria-label", `Attach to ${vm.name}`);
    const [state, colour] = status();
    write(badge, state);
    badge.className = `badge ${colour}`;
    write(facts, vm.up ? [vm.client && `used by ${vm.client}`, vm.pid && `process ${vm.pid}`].filter(Boolean).join(", ") : "");
    write(reason, vm.why && (vm.up ? vm.why : `Not reached: ${vm.why}. It shows up again when it is back.`));
    other.hidden = ports.hidden = !vm.up;
    none.hidden = !vm.up || vm.attachments.length > 0;
    showPorts();
    follow(attached, vm.attachments, (each) => each.number, () => attachmentRow(act, () => vm, names));
  };

  function status() {
    if (!vm.up) return ["gone", "bad"];
    if (vm.missing.length) return [`waits for ${vm.missing.join(", ")}`, "wait"];
    return vm.client ? ["running", "good"] : ["waits for a VM", ""];
  }

  function showPorts() {
    const used = new Map(vm.attachments.map((each) => [each.port, each]));
    const kept = new Map(vm.attachments.flatMap((each) => each.ports.map((port) => [port, each])));
    const [usb2, usb3] = vm.ports;
    const items = [];
    for (const [kind, first, number] of [["USB 2", 1, usb2], ["USB 3", usb2 + 1, usb3]]) {
      if (number) items.push({ kind });
      for (let port = first; port < first + number; port += 1) {
        const state = used.has(port) ? "used" : kept.has(port) ? "kept" : "";
        const what = state ? `${(used.get(port) ?? kept.get(port)).product}${state === "kept" ? ", kept for it" : ""}` : "free";
        items.push({ port, state, what });
      }
    }
    follow(ports, items, (item) => item.kind ?? item.port, () => {
      const node = el("li");
      node.update = (item) => {
        node.className = item.kind ? "kind" : item.state;
        write(node, item.kind ?? String(item.port));
        if (!item.port) return;
        node.title = `port ${item.port}: ${item.what}`;
        node.setAttribute("aria-label", node.title);
      };
      return node;
    });
  }
  return card;
}

function attachmentRow(act, vm, names) {
  let attachment;
  const name = el("h4");
  const badge = el("span", { class: "badge" });
  const spec = el("span", { class: "spec" });
  const serial = el("span");
  const reason = el("p", { class: "reason" });
  const rate = rateLine();
  const target = el("select");
  const label = el("label", {}, "Move to");
  const move = el("button", {}, "Move");
  const which = () => ({ vm: vm().name, number: attachment.number });
  const again = el("button", {
    type: "button",
    onclick: () => act(again, "attach", { vm: vm().name, device: String(attachment.number) }),
  }, "Attach again");
  const detach = el("button", { type: "button", onclick: () => act(detach, "detach", which()) }, "Detach");
  const capture = el("button", {
    type: "button",
    onclick: () => act(capture, attachment.captured ? "stop" : "capture", which()),
  });
  const form = el("form", { class: "row", onsubmit: submit }, again, detach, label, target, move, capture);
  const row = el(
    "li",
    {},
    el("div", { class: "title" }, name, badge),
    el("p", { class: "facts" }, spec, serial),
    reason,
    rate.node,
    form,
  );

  function submit(event) {
    event.preventDefault();
    act(move, "move", { ...which(), to: target.value });
  }

  row.update = (now) => {
    attachment = now;
    write(name, attachment.name ? `${attachment.name}: ${attachment.product}` : attachment.product);
    write(badge, attachment.state === "plugged" ? `port ${attachment.port}` : attachment.state);
    badge.className = `badge ${mood(attachment.state)}`;
    write(spec, attachment.spec);
    write(serial, attachment.serial && `serial ${attachment.serial}`);
    write(reason, attachment.reason);
    rate.update(attachment.rate);
    const others = names().filter((other) => other !== vm().name);
    target.id = `move-${vm().name}-${attachment.number}`;
    label.htmlFor = target.id;
    offer(target, others);
    label.hidden = target.hidden = move.hidden = others.length === 0;
    again.hidden = !["held", "asking", "refused"].includes(attachment.state);
    detach.hidden = attachment.state === "held" && attachment.configured;
    write(detach, attachment.state === "held" ? "Remove" : "Detach");
    detach.hidden ||= attachment.state === "leaving";
    write(capture, attachment.captured ? "Stop capture" : "Capture");
    capture.hidden = attachment.state !== "plugged" && !attachment.captured;
    for (const button of [again, detach, move, capture]) button.setAttribute("aria-label", `${button.textContent} ${attachment.product}`);
  };
  return row;
}

function rateLine() {
  const history = [];
  const svg = document.createElementNS("http://www.w3.org/2000/svg", "svg");
  const curve = document.createElementNS("http://www.w3.org/2000/svg", "polyline");
  svg.setAttribute("viewBox", `0 0 ${HISTORY - 1} 20`);
  svg.setAttribute("preserveAspectRatio", "none");
  svg.setAttribute("aria-hidden", "true");
  svg.append(curve);
  const [toGuest, fromGuest, transfers, errors] = ["b", "b", "span", "span"].map((tag) => el(tag));
  errors.className = "errors";
  const node = el("p", { class: "rate" }, svg, el("span", {}, "to guest ", toGuest), el("span", {}, "from guest ", fromGuest), transfers, errors);

  function update(rate) {
    node.hidden = rate === null;
    if (rate === null) {
      history.length = 0;
      return;
    }
    const [into, from, number, failed, missed] = rate;
    history.push(into + from);
    if (history.length > HISTORY) history.shift();
    const most = Math.max(...history, 1000);
    const start = HISTORY - history.length;
    curve.setAttribute("points", history.map((value, index) => `${start + index},${(19 - (value / most) * 18).toFixed(1)}`).join(" "));
    write(toGuest, speed(into));
    write(fromGuest, speed(from));
    write(transfers, count(number, "transfer") + "/s");
    write(errors, [failed && count(failed, "error"), missed && count(missed, "missed interval")].filter(Boolean).join(", "));
  }
  return { node, update };
}
