// Words for people. Pure functions, tested in test/format.test.ts.
import type { AgentState, Availability, Health, State } from "./types";

/** The user's layer (docs/domain.md, layer 4): first match. */
export function availabilityOf(s: { state: State; health: Health }): Availability {
  if (s.health === "unhealthy" || s.state === "error") return "unavailable";
  if (s.state === "running" && s.health === "healthy") return "available";
  if (s.state === "running" && s.health === "degraded") return "limited";
  if (s.state === "starting" || s.state === "stopping") return "changing";
  if (s.state === "stopped") return "off";
  return "unknown";
}

/** availabilities in the order in which people need them: the worst first. */
export const availabilities: readonly Availability[] = [
  "unavailable",
  "limited",
  "changing",
  "unknown",
  "off",
  "available",
];

export const availabilityWords: Record<Availability, string> = {
  unavailable: "Unavailable",
  limited: "Limited",
  changing: "Changing",
  unknown: "Unknown",
  off: "Off",
  available: "Available",
};

const reasonTable: Record<string, string> = {
  ok: "All is well",
  never_seen: "Never seen yet",
  stale: "Nothing recent is known",
  needs_agent: "Needs an agent",
  needs_config: "Needs configuration",
  heartbeat_late: "Heartbeat is late",
  heartbeat_lost: "Heartbeat is lost",
  agent_silent: "Its agent is silent",
  probe_failing: "Probes fail",
  probe_slow: "Answers slowly",
  not_mcp: "Answers, but not MCP",
  auth_failed: "Rejects our credential",
  throttled: "Throttles us",
  crashed: "Crashed",
  crash_loop: "Crash loop",
  stopped_unexpectedly: "Stopped unexpectedly",
  container_unhealthy: "Fails its container's health check",
  container_error: "Container error",
  stuck_starting: "Stuck starting",
  stuck_stopping: "Stuck stopping",
  tools_changed: "Tools differ from the pinned ones",
  override: "Set by a person",
};

/** reasonWords says a reason; a word that is not known is shown as it is. */
export function reasonWords(reason: string): string {
  return Object.hasOwn(reasonTable, reason) ? reasonTable[reason]! : plain(reason);
}

const causeTable: Record<string, string> = {
  refused: "connection refused",
  timeout: "timeout",
  dns: "name not found",
  tls: "TLS error",
  reset: "connection reset",
  unreachable: "host unreachable",
  health_check: "its own health check",
  too_large: "answer too large",
  unsupported_version: "unsupported protocol version",
  method_not_found: "method not found",
  mcp_error: "MCP error",
  bad_config: "bad configuration",
  canceled: "canceled",
  slow: "slow",
  session_lost: "session lost",
  not_mcp: "not MCP",
  tool_error: "tool call failed",
  tool_unexpected: "tool call answered something else",
};

/** causeWords says a cause: http_503, exit_137 and the words of docs/domain.md. */
export function causeWords(cause: string | undefined): string {
  if (!cause) return "";
  const m = /^(http|exit)_(\d+)$/.exec(cause);
  if (m) return m[1] === "http" ? "HTTP " + m[2] : "exit code " + m[2];
  return Object.hasOwn(causeTable, cause) ? causeTable[cause]! : plain(cause);
}

/** Causes that add nothing to the words of their reason. */
const says = new Map<string, readonly string[]>([
  ["not_mcp", ["not_mcp"]],
  ["container_unhealthy", ["health_check"]],
  ["probe_slow", ["slow"]],
  ["auth_failed", ["http_401", "http_403"]],
]);

/** why puts reason and cause in one short line. */
export function why(s: { reason: string; cause?: string }): string {
  const c = says.get(s.reason)?.includes(s.cause ?? "") ? "" : causeWords(s.cause);
  return c ? reasonWords(s.reason) + ": " + c : reasonWords(s.reason);
}

function plain(word: string): string {
  return word.replaceAll("_", " ");
}

export const agentWords: Record<AgentState, string> = {
  none: "no agent",
  never_seen: "agent never seen",
  ok: "agent ok",
  late: "agent late",
  lost: "agent lost",
};

/** duration says a length of time in at most two units: "45 s", "3 min", "2 h 5 min", "4 d 3 h"; "" for what is none. */
export function duration(seconds: number): string {
  if (!Number.isFinite(seconds)) return "";
  const s = Math.max(0, Math.floor(seconds));
  if (s < 60) return s + " s";
  const m = Math.floor(s / 60);
  if (m < 60) return m < 10 && s % 60 ? `${m} min ${s % 60} s` : m + " min";
  const h = Math.floor(m / 60);
  if (h < 24) return m % 60 ? `${h} h ${m % 60} min` : h + " h";
  const d = Math.floor(h / 24);
  return d < 10 && h % 24 ? `${d} d ${h % 24} h` : d + " d";
}

/** since says how long ago a time was, by the clock given in ms. */
export function since(at: string | undefined, now: number): string {
  const t = at ? Date.parse(at) : NaN;
  return Number.isNaN(t) ? "" : duration((now - t) / 1000);
}

const pad = (n: number) => String(n).padStart(2, "0");

/** clock is a time of day of this machine's zone: "12:03:41". */
export function clock(at: number | string): string {
  const d = new Date(at);
  return Number.isNaN(d.getTime()) ? "" : `${pad(d.getHours())}:${pad(d.getMinutes())}:${pad(d.getSeconds())}`;
}

/** moment is a date and time of this machine's zone: "2026-11-24 12:03:41". */
export function moment(at: number | string): string {
  const d = new Date(at);
  return Number.isNaN(d.getTime())
    ? ""
    : `${d.getFullYear()}-${pad(d.getMonth() + 1)}-${pad(d.getDate())} ${clock(d.getTime())}`;
}

/** at is a time as near ones are told: "12:03:41" today, "Nov 22 12:03" before. */
export function at(time: string | number | undefined, now: number): string {
  const d = new Date(time ?? NaN);
  if (Number.isNaN(d.getTime())) return "";
  if (d.toDateString() === new Date(now).toDateString()) return clock(d.getTime());
  const date = `${months[d.getMonth()]} ${d.getDate()}`;
  return d.getFullYear() === new Date(now).getFullYear() ? `${date} ${pad(d.getHours())}:${pad(d.getMinutes())}` : `${date} ${d.getFullYear()}`;
}

const months = ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"];

/** bytes says an amount of memory: "1.9 GiB". */
export function bytes(n: number): string {
  const units = ["B", "KiB", "MiB", "GiB", "TiB", "PiB"];
  let i = 0;
  // By the number as it is shown: 1023.9 KiB are 1.0 MiB.
  while (Math.round(n) >= 1024 && i < units.length - 1) {
    n /= 1024;
    i++;
  }
  return `${i === 0 || n >= 99.95 ? Math.round(n) : n.toFixed(1)} ${units[i]}`;
}

/** percent keeps what matters near 100: "99.98 %", and never rounds up to 100. */
export function percent(p: number): string {
  if (p >= 100) return "100 %";
  if (p >= 99) return (Math.floor(p * 1000) / 1000).toFixed(3).replace(/0+$/, "").replace(/\.$/, "") + " %";
  return (Math.floor(p * 10) / 10).toFixed(1) + " %";
}

/** ms says a latency: "0.8 ms", "24 ms", "2.4 s". */
export function ms(n: number): string {
  if (n >= 999.5) return (n / 1000).toFixed(1) + " s";
  return n < 9.95 ? n.toFixed(1) + " ms" : Math.round(n) + " ms";
}

/** count writes a number with thin spaces between thousands. */
export function count(n: number): string {
  return String(n).replace(/\B(?=(\d{3})+(?!\d))/g, "\u202f");
}

/** plural: "1 server", "2 servers". */
export function plural(n: number, one: string, many = one + "s"): string {
  return count(n) + " " + (n === 1 ? one : many);
}
