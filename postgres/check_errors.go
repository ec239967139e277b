package postgres

import (
	"errors"

	"github.com/jackc/pgx/v5/pgconn"
)

// checkSQLState returns the SQLSTATE of an error of the server; "" where it is none.
func checkSQLState(err error) string {
	var pg *pgconn.PgError
	if errors.As(err, &pg) {
		return pg.Code
	}
	return ""
}
