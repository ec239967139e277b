import { moment, since } from "../format";
import { now } from "../store";

/** Since says how long ago a time was, with the time itself for who looks closer. */
export function Since({ at, class: c = "", prefix = "" }: { at?: string | undefined; class?: string; prefix?: string }) {
  if (!at) return <span class={c} />;
  return (
    <time class={"num " + c} dateTime={at} title={"since " + moment(at)}>
      {prefix}
      {since(at, now.value)}
    </time>
  );
}
