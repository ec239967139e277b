import { expect, it } from "vitest";
import { titleOf } from "../src/head";

it.each([
  [{ broken: 0, loaded: true, live: true, name: "Fleet" }, "Fleet · statussync"],
  [{ broken: 3, loaded: true, live: true, name: "Fleet" }, "(3) Fleet · statussync"],
  [{ broken: 1200, loaded: true, live: true, name: "weather" }, "(1\u202f200) weather · statussync"],
  [{ broken: 3, loaded: true, live: false, name: "Fleet" }, "(?) Fleet · statussync"], // an old number is no number
  [{ broken: 3, loaded: false, live: true, name: "Fleet" }, "Fleet · statussync"],
  [{ broken: 0, loaded: true, live: true, name: "" }, "statussync"],
  [{ broken: 2, loaded: true, live: true, name: "<b>" }, "(2) <b> · statussync"],
])("%j", (o, want) => {
  expect(titleOf(o)).toBe(want);
});
