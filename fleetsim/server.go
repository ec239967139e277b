package fleetsim

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"strings"
	"time"

	"github.com/modelcontextprotocol/go-sdk/mcp"
)

// sessionCloser ends the MCP sessions of a server, as the end of its process does.
type sessionCloser interface{ closeSessions() }

// sdkServer is an MCP server made with the official Go SDK.
type sdkServer struct{ srv *mcp.Server }

func (s sdkServer) closeSessions() {
	for ss := range s.srv.Sessions() {
		ss.Close()
	}
}

type (
	textIn struct {
		Text string `json:"text"`
	}
	textOut struct {
		Text string `json:"text"`
	}
	sumIn struct {
		Numbers []float64 `json:"numbers"`
	}
	sumOut struct {
		Sum float64 `json:"sum"`
	}
	countOut struct {
		Words int `json:"words"`
	}
)

// newSDKServer returns a server with two or three tools that work, and the handler of its endpoint.
func newSDKServer(name string, kind Kind, tools int) (sdkServer, http.Handler) {
	srv := mcp.NewServer(&mcp.Implementation{Name: name, Version: "1.0.0"}, nil)
	mcp.AddTool(srv, &mcp.Tool{Name: "echo", Description: "Returns the text that it is given"},
		func(_ context.Context, _ *mcp.CallToolRequest, in textIn) (*mcp.CallToolResult, textOut, error) {
			return nil, textOut(in), nil
		})
	mcp.AddTool(srv, &mcp.Tool{Name: "sum", Description: "Adds numbers"},
		func(_ context.Context, _ *mcp.CallToolRequest, in sumIn) (*mcp.CallToolResult, sumOut, error) {
			var out sumOut
			for _, n := range in.Numbers {
				out.Sum += n
			}
			return nil, out, nil
		})
	if tools > 2 {
		mcp.AddTool(srv, &mcp.Tool{Name: "count_words", Description: "Counts the words of a text"},
			func(_ context.Context, _ *mcp.CallToolRequest, in textIn) (*mcp.CallToolResult, countOut, error) {
				return nil, countOut{len(strings.Fields(in.Text))}, nil
			})
	}
	h := mcp.NewStreamableHTTPHandler(func(*http.Request) *mcp.Server { return srv }, &mcp.StreamableHTTPOptions{
		Stateless: kind == KindModern, MaxRequestBodyBytes: maxBody,
		SessionTimeout: time.Minute, // the SDK never ends abandoned sessions otherwise
	})
	return sdkServer{srv}, h
}

// serverMux serves a server's two paths below prefix.
func serverMux(prefix, name string, mcpHandler http.Handler) http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET "+prefix+"/health", func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		fmt.Fprintf(w, "{\"status\":\"ok\",\"name\":%q}\n", name)
	})
	mux.Handle(prefix+"/mcp", mcpHandler)
	return mux
}

// plainVersion is the protocol version of a plain server, whatever the client asks for.
const plainVersion = "2025-06-18"

type rpcRequest struct {
	ID     json.RawMessage `json:"id"`
	Method string          `json:"method"`
}

type rpcError struct {
	Code    int    `json:"code"`
	Message string `json:"message"`
}

type rpcResponse struct {
	JSONRPC string          `json:"jsonrpc"`
	ID      json.RawMessage `json:"id"`
	Result  any             `json:"result,omitempty"`
	Error   *rpcError       `json:"error,omitempty"`
}

// plainMCP speaks the legacy protocol without sessions: initialize, ping, an empty tools/list; everything else is an
// unknown method. GET and DELETE are 405, as the specification has it for servers that offer neither.
type plainMCP struct{ name string }

// ServeHTTP answers one JSON-RPC message.
func (p plainMCP) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if r.Method != http.MethodPost {
		w.Header().Set("Allow", http.MethodPost)
		http.Error(w, "method not allowed", http.StatusMethodNotAllowed)
		return
	}
	var req rpcRequest
	res := rpcResponse{JSONRPC: "2.0", ID: json.RawMessage("null")}
	code := http.StatusOK
	if err := json.NewDecoder(r.Body).Decode(&req); err != nil {
		code, res.Error = http.StatusBadRequest, &rpcError{-32700, "Parse error"}
	} else {
		if len(req.ID) == 0 { // a notification
			w.WriteHeader(http.StatusAccepted)
			return
		}
		res.ID = req.ID
		switch req.Method {
		case "initialize":
			res.Result = map[string]any{
				"protocolVersion": plainVersion, "capabilities": map[string]any{"tools": map[string]any{}},
				"serverInfo": map[string]any{"name": p.name, "version": "1.0.0"},
			}
		case "ping":
			res.Result = struct{}{}
		case "tools/list":
			res.Result = map[string]any{"tools": []any{}}
		default:
			res.Error = &rpcError{-32601, "Method not found"}
		}
	}
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(code)
	json.NewEncoder(w).Encode(res)
}
