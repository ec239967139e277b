package wire

// PathSession is where people sign in with a token, and out again.
const PathSession = BasePath + "/session"

// SessionRequest signs in.
type SessionRequest struct {
	Token string `json:"token" minLength:"1" maxLength:"4096" doc:"The token that a program would send as a bearer."`
}
