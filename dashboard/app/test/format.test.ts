import { describe, expect, it } from "vitest";
import { at } from "../src/format";

describe("a time", () => {
  const now = new Date(2026, 10, 24, 1, 45).getTime();
  const cases: [string, Date, string][] = [
    ["of today is a time of day", new Date(2026, 10, 24, 0, 0, 5), "00:00:05"],
    ["of yesterday has a date, however near it is", new Date(2026, 10, 23, 23, 59, 58), "Nov 23 23:59"],
    ["of this year has no year", new Date(2026, 0, 2, 3, 4), "Jan 2 03:04"],
    ["of another year has it", new Date(2025, 10, 24, 1, 45), "Nov 24 2025"],
  ];
  it.each(cases)("%s", (_, t, want) => {
    expect(at(t.getTime(), now)).toBe(want);
    expect(at(t.toISOString(), now)).toBe(want);
  });
  it("that is none is empty", () => {
    expect(at(undefined, now)).toBe("");
    expect(at("yesterday", now)).toBe("");
  });
});
