// What the server's view says, as pure functions; tested in test/server.test.ts.
import { availabilityOf, availabilityWords, duration, moment, reasonWords, why } from "../../format";
import type { Evidence, Maintenance, Rule, Server, State, Status, Update } from "../../types";

/** headline is the status in words: what people can do with the server, and why. */
export function headline(s: Status): { what: string; why: string } {
  const what = availabilityWords[s.availability];
  if (s.reason === "ok" && s.health === "healthy") return { what, why: "Running and healthy" };
  if (s.reason === "ok" && s.state === "stopped") return { what, why: "Stopped, as it should be" };
  return { what, why: why(s) };
}

/** evidenceWords names a kind of evidence, and says who gives it. */
export function evidenceWords(kind: string): { name: string; from: string } {
  const table: Record<string, [string, string]> = {
    container: ["Container", "what the agent saw of it"],
    heartbeat: ["Heartbeat", "its agent's sign of life"],
    record: ["Record", "the platform's database"],
    probe: ["Probe", "our own question to the server"],
    tools: ["Tools", "the list that it gives"],
    override: ["Override", "a person's word"],
    maintenance: ["Maintenance", "a window that people defined"],
    desired: ["Desired", "what somebody wants of it"],
  };
  const t = Object.hasOwn(table, kind) ? table[kind] : undefined;
  return t ? { name: t[0], from: t[1] } : { name: kind.replaceAll("_", " "), from: "" };
}

/** Judgement is the rules in the order in which a person wants them. */
export interface Judgement {
  /** gave the health, or, with an override or a deadline, the status */
  won: Rule[];
  /** gave the state from which the others go on; undefined where it won itself */
  base?: Rule;
  /** gave something that another one outweighed */
  lost: Rule[];
  /** said nothing */
  silent: Rule[];
}

export function judge(rules: readonly Rule[]): Judgement {
  const j: Judgement = { won: [], lost: [], silent: [] };
  for (const r of rules) {
    if (r.won) j.won.push(r);
    else if (r.rule.startsWith("1 ") && r.state) j.base = r;
    else if ((r.health && r.health !== "unknown") || (r.state && !r.rule.startsWith("1 "))) j.lost.push(r);
    else j.silent.push(r);
  }
  return j;
}

/** ruleName splits "1 base state" and "3j" into the number and the rest. */
export function ruleName(rule: string): { number: string; name: string } {
  const i = rule.indexOf(" ");
  return i < 0 ? { number: rule, name: "" } : { number: rule.slice(0, i), name: rule.slice(i + 1) };
}

/** verdict says what a rule gives: "stopped, unhealthy". */
export function verdict(r: Rule): string {
  return [r.state, r.health].filter(Boolean).join(", ");
}

/** reasoned leaves out the words by which a silent rule says that it is silent. */
export function reasoned(why: string | undefined): string {
  return (why ?? "").replace(/^not the case: /, "");
}

/** addedReason says a rule's reason where the rule's own text does not hold its words already. */
export function addedReason(reason: string | undefined, text: string): string {
  if (!reason || reason === "ok") return "";
  const said = text.toLowerCase();
  if (reason === "override" && said.startsWith("set by ")) return ""; // it names the person
  const words = reasonWords(reason);
  return words.toLowerCase().split(/[^a-z]+/).every((w) => w.length < 4 || said.includes(w)) ? "" : words;
}

/** An entry's availability after it, for the sign beside it; undefined where it is not about a status. */
export function entryAvailability(e: Update) {
  return e.current_status ? availabilityOf(e.current_status) : undefined;
}

/** sourceWords says whose doing an entry is. */
export function sourceWords(source: string): string {
  const table: Record<string, string> = { dtma: "agent", heartbeat: "probe", manual: "person", system: "system" };
  return Object.hasOwn(table, source) ? table[source]! : source;
}

/** healthsOf are the healths that go with a state in an override; the first is what follows where none is given. */
export function healthsOf(state: State): readonly string[] {
  if (state === "running") return ["healthy", "degraded", "unhealthy", "unknown"];
  if (state === "error") return ["unhealthy", "unknown"];
  return ["unknown", "unhealthy"];
}

/** durations that an override or a window may last, as the API has them and in words. */
export const durations: readonly [string, string][] = [
  ["15m", "15 minutes"],
  ["1h", "1 hour"],
  ["4h", "4 hours"],
  ["12h", "12 hours"],
  ["1d", "1 day"],
  ["7d", "7 days"],
  ["30d", "30 days"],
];

/** selects tells whether a window is about a server: by its id, its environment, or all of the window's labels. */
export function selects(w: Maintenance, s: Pick<Server, "id" | "environment_id" | "labels">): boolean {
  if (w.server_ids?.includes(s.id)) return true;
  if (s.environment_id && w.environment_ids?.includes(s.environment_id)) return true;
  const labels = Object.entries(w.labels ?? {});
  return labels.length > 0 && labels.every(([k, v]) => s.labels?.[k] === v);
}

/** scope says whom else a window is about; empty where it is about one server only. */
export function scope(w: Maintenance): string {
  const parts: string[] = [];
  if (w.environment_ids?.length) parts.push(w.environment_ids.length === 1 ? "environment " + w.environment_ids[0] : w.environment_ids.length + " environments");
  const labels = Object.entries(w.labels ?? {}).map(([k, v]) => k + "=" + v);
  if (labels.length) parts.push("label " + labels.join(", "));
  if (w.servers > 1 || parts.length) parts.push(w.servers === 1 ? "1 server" : w.servers + " servers");
  return parts.join(", ");
}

/** left says how long until a time: "for 12 min more"; empty where it is over. */
export function left(until: string | undefined, now: number): string {
  const t = until ? Date.parse(until) : NaN;
  return t > now ? duration((t - now) / 1000) : "";
}

/** short cuts digests to what people compare, and writes times and lengths of time as the rest of the page does. */
export function short(value: string): string {
  return value
    .replace(/\b(sha256:[0-9a-f]{10})[0-9a-f]{54}\b/g, "$1…")
    .replace(/\b\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?Z/g, (t) => moment(t) || t)
    .replace(/\b(?:(\d+)h)?(\d+)m(\d+)s\b/g, (_, h = 0, m, s) => duration(Number(h) * 3600 + Number(m) * 60 + Number(s)))
    .replace(/\b(\d+)s\b/g, "$1 s");
}

/** evidenceAge is the age of evidence at now, by when it was asserted; undefined: it has no time. */
export function evidenceAge(e: Evidence, now: number): number | undefined {
  const t = e.asserted_at ? Date.parse(e.asserted_at) : NaN;
  return Number.isNaN(t) ? undefined : Math.max(0, (now - t) / 1000);
}
