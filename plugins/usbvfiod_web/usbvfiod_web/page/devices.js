// Cards of the host's devices.

import { el, offer, write } from "./dom.js";
import { usbSpeed } from "./format.js";

export function deviceCard(act) {
  let device;
  const name = el("h3");
  const badge = el("span", { class: "badge" });
  const facts = { identity: el("span", { class: "spec" }) };
  for (const fact of ["serial", "port", "speed", "driver", "able"]) facts[fact] = el("span");
  const use = el("p", { class: "reason" });
  const target = el("select");
  const go = el("button");
  const detach = el("button", { type: "button", onclick: () => act(detach, "detach", holder()) }, "Detach");
  const holder = () => ({ vm: device.holder.vm, number: device.holder.number });
  const label = el("label");
  const form = el("form", { class: "row", onsubmit: submit }, detach, label, target, go);
  const reasons = el("dl");
  const question = el("summary");
  const why = el("details", {}, question, reasons);
  const card = el(
    "li",
    { class: "card", tabindex: "-1" },
    el("div", { class: "title" }, name, badge),
    el("p", { class: "facts" }, ...Object.values(facts)),
    use,
    form,
    why,
  );

  function submit(event) {
    event.preventDefault();
    if (device.holder) act(go, "move", { ...holder(), to: target.value });
    else act(go, "attach", { vm: target.value, device: device.id });
  }

  card.update = (now) => {
    device = now;
    write(name, device.name);
    write(facts.identity, device.identity);
    write(facts.serial, device.serial && `serial ${device.serial}`);
    write(facts.port, device.port && `port ${device.port}`);
    write(facts.speed, usbSpeed(device.speed));
    write(facts.driver, device.driver && `driver ${device.driver}`);
    write(use, !device.holder && device.in_use ? `In use on this host: ${device.in_use}. A VM gets it when that has ended.` : "");
    explain();
  };

  card.refresh = (up) => {
    const able = device.vms.filter((vm) => vm.can).map((vm) => vm.vm);
    const held = device.holder !== null;
    const targets = able.filter((vm) => up.includes(vm) && vm !== device.holder?.vm);
    const id = `to-${device.id}`;
    target.id = id;
    label.htmlFor = id;
    write(label, targets.length ? (held ? "Move to" : "Attach to") : "");
    offer(target, targets);
    write(go, held ? "Move" : "Attach");
    target.hidden = go.hidden = targets.length === 0;
    go.className = held ? "" : "main";
    go.setAttribute("aria-label", `${go.textContent} ${device.name}`);
    detach.hidden = !held;
    detach.setAttribute("aria-label", `Detach ${device.name}`);
    form.hidden = !held && targets.length === 0;
    write(facts.able, device.vms.length > 1 && able.length ? `usable by ${able.join(", ")}` : "");
    const [text, colour] = held
      ? [`in ${device.holder.vm}`, "good"]
      : able.length === 0
        ? ["not usable", "bad"]
        : device.in_use
          ? ["in use", "wait"]
          : ["free", ""];
    write(badge, text);
    badge.className = `badge ${colour}`;
  };

  function explain() {
    const cannot = device.vms.filter((vm) => !vm.can);
    why.hidden = cannot.length === 0;
    question.textContent = cannot.length === device.vms.length ? "Why not?" : `Why not ${cannot.map((vm) => vm.vm).join(", ")}?`;
    const text = JSON.stringify(cannot);
    if (reasons.dataset.text === text) return;
    reasons.dataset.text = text;
    reasons.replaceChildren(
      ...cannot.flatMap((vm) => [
        el("dt", {}, vm.vm),
        el("dd", {}, vm.why, ...(vm.fix ? [el("p", {}, vm.what), el("pre", { tabindex: "0" }, vm.fix)] : [])),
      ]),
    );
  }
  return card;
}
