import { useEffect, useRef, useState } from "preact/hooks";
import { ApiError, signIn } from "../api";
import { start } from "../store";

/** SignIn asks for a token. The service keeps it in a cookie that no script can read; the page forgets it. */
export function SignIn() {
  const input = useRef<HTMLInputElement>(null);
  const [busy, setBusy] = useState(false);
  const [error, setError] = useState("");
  useEffect(() => input.current?.focus(), []);

  async function submit(e: Event) {
    e.preventDefault();
    const token = input.current?.value.trim() ?? "";
    if (token === "") {
      setError("Enter a token.");
      input.current?.focus();
      return;
    }
    setBusy(true);
    setError("");
    try {
      await signIn(token);
      void start();
    } catch (err) {
      setBusy(false);
      setError(words(err));
      input.current?.select();
    }
  }

  return (
    <main class="signin" id="main">
      <form class="card" onSubmit={submit} noValidate>
        <p class="brand">
          <span class="brand-mark" aria-hidden="true" />
          statussync
        </p>
        <h1>Sign in</h1>
        <label for="token">Token</label>
        <input
          ref={input}
          id="token"
          name="token"
          type="password"
          autocomplete="current-password"
          spellcheck={false}
          aria-describedby={error ? "signin-error" : "signin-help"}
          aria-invalid={error !== ""}
          disabled={busy}
        />
        {error && (
          <p class="field-error" id="signin-error" role="alert">
            {error}
          </p>
        )}
        <button class="button primary" type="submit" disabled={busy}>
          {busy ? "Signing in…" : "Sign in"}
        </button>
        <p class="muted small" id="signin-help">
          One of the tokens under <code>auth</code> in the service's configuration. Whoever runs the service hands them out.
        </p>
      </form>
    </main>
  );
}

function words(err: unknown): string {
  if (!(err instanceof ApiError)) return "That did not work. Try again.";
  if (err.status === 401) return "The service does not know this token.";
  if (err.status === 429) return `Too many attempts. Try again in ${err.retryAfter || 60} s.`;
  return err.message;
}
