// Asking the API from a view: what was answered stays while it is asked again.
import { useEffect, useRef, useState } from "preact/hooks";
import { ApiError } from "../../api";
import { connection } from "../../store";

/** Loaded is an answer, or why there is none. data stays while it is asked again, and where that fails. */
export interface Loaded<T> {
  data?: T;
  error?: ApiError;
  busy: boolean;
  /** asks again now */
  reload: () => void;
}

export interface LoadOptions {
  /** asks again whenever this changes, but at most every min ms */
  on?: unknown;
  /** default 2000 */
  min?: number;
  /** and not before so many ms have passed since: what follows the journal is behind it for a moment */
  after?: number;
  /** asks again after so many ms, while the page is live and seen */
  every?: number;
}

/**
 * useLoad asks when key changes (then at once), and as o says. What comes late of an earlier key is dropped. While the
 * page is not live it does not ask; it asks when it is live again.
 */
export function useLoad<T>(key: string, load: (signal: AbortSignal) => Promise<T>, o: LoadOptions = {}): Loaded<T> {
  const [state, set] = useState<{ key: string; data?: T; error?: ApiError; busy: boolean }>({ key, busy: true });
  const live = connection.value.state === "live";
  const ask = useRef<{ now: () => void; soon: () => void }>({ now() {}, soon() {} });
  const latest = useRef(load);
  latest.current = load;
  const options = useRef(o);
  options.current = o;

  const absent = useRef(false); // what is not there is not asked for again and again
  absent.current = state.error?.status === 404;

  useEffect(() => {
    let abort: AbortController | undefined;
    let timer: ReturnType<typeof setTimeout> | undefined;
    let began = -Infinity;
    let running = false;
    let again = false; // something changed while it was asked: once more, when that is answered
    const soon = () => {
      if (running) again = true;
      else timer ??= setTimeout(run, Math.max(options.current.after ?? 0, began + (options.current.min ?? 2000) - performance.now()));
    };
    const answered = () => {
      running = false;
      if (again) soon();
      again = false;
    };
    const run = () => {
      clearTimeout(timer);
      timer = undefined;
      abort?.abort();
      const mine = (abort = new AbortController());
      began = performance.now();
      running = true;
      again = false;
      set((s) => ({ ...s, key, busy: true }));
      latest.current(mine.signal).then(
        (data) => {
          if (mine.signal.aborted) return;
          set({ key, data, busy: false });
          answered();
        },
        (e: unknown) => {
          if (mine.signal.aborted) return;
          const error = e instanceof ApiError ? e : new ApiError(0, { detail: "The answer could not be read." });
          set((s) => ({ key, data: s.data, error, busy: false }));
          answered();
        },
      );
    };
    ask.current = { now: run, soon };
    run();
    return () => {
      clearTimeout(timer);
      abort?.abort();
    };
  }, [key]);

  const first = useRef(true);
  useEffect(() => {
    if (first.current) {
      first.current = false;
      return;
    }
    if (live) ask.current.soon();
  }, [o.on, live]);

  useEffect(() => {
    if (!o.every || !live) return;
    const t = setInterval(() => {
      if (!document.hidden && !absent.current) ask.current.soon();
    }, o.every);
    return () => clearInterval(t);
  }, [o.every, live]);

  return { data: state.data, error: state.error, busy: state.busy || state.key !== key, reload: () => ask.current.now() };
}

/** FOLLOWS is how far, in ms, what the service makes of its journal (spans of uptime) may be behind it. */
export const FOLLOWS = 1500;

/** Doing is a call that changes something: whether it runs, and why the last one failed. */
export interface Doing {
  busy: boolean;
  error?: ApiError;
  /** runs f, unless another runs; the answer is whether it succeeded */
  run: (f: () => Promise<void>) => Promise<boolean>;
  clear: () => void;
}

export function useDoing(): Doing {
  const [state, set] = useState<{ busy: boolean; error?: ApiError }>({ busy: false });
  const busy = useRef(false);
  return {
    ...state,
    clear: () => set({ busy: busy.current }),
    async run(f) {
      if (busy.current) return false;
      busy.current = true;
      set({ busy: true });
      try {
        await f();
        set({ busy: false });
        return true;
      } catch (e) {
        set({ busy: false, error: e instanceof ApiError ? e : new ApiError(0, { detail: "The answer could not be read." }) });
        return false;
      } finally {
        busy.current = false;
      }
    },
  };
}
