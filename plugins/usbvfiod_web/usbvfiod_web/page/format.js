// Numbers and states in words.

const UNITS = ["B/s", "kB/s", "MB/s", "GB/s"];

export function speed(bytes) {
  let unit = 0;
  while (bytes >= 1000 && unit < UNITS.length - 1) {
    bytes /= 1000;
    unit += 1;
  }
  return `${bytes.toFixed(unit === 0 || bytes >= 100 ? 0 : 1)} ${UNITS[unit]}`;
}

export function count(number, one, several = `${one}s`) {
  return `${number.toLocaleString("en")} ${number === 1 ? one : several}`;
}

const SPEEDS = { low: "1.5 Mb/s", full: "12 Mb/s", high: "480 Mb/s", super: "5 Gb/s", super_plus: "10 Gb/s" };

export function usbSpeed(name) {
  return SPEEDS[name] ?? name;
}

/** The colour of a state of an attachment. */
export function mood(state) {
  if (state === "plugged") return "good";
  if (state === "refused" || state === "retrying") return "bad";
  return "wait";
}
